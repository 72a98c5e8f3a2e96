"""What a running agent writes to its log when it is asked to, and how much, in which form."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import Plan
from tests.support.agents import Agent, subnet_of
from tests.support.labs import NEEDS_NETNS, fresh_name

pytestmark = NEEDS_NETNS


@pytest.fixture
def host() -> Iterator[Host]:
    with Lab(Plan(fresh_name(), hosts=1, agents=())) as lab:
        yield lab.hosts[0]


def test_sigusr1_writes_the_status_to_the_log_and_ends_nothing(host: Host) -> None:
    with Agent(host) as agent:
        agent.wait_ready()
        agent.process.send_signal(signal.SIGUSR1)
        agent.wait_for_line("status: state      running (ready)")
        agent.wait_for_line(f"status: subnet     {subnet_of(host)}")
        assert host.is_ready()
        assert agent.stop() == 0


def test_sigusr1_while_an_agent_waits_tells_for_what(host: Host) -> None:
    host.plan.registry_file.unlink()
    with Agent(host) as agent:
        agent.wait_for_line("does not exist and so holds no network configuration")
        agent.process.send_signal(signal.SIGUSR1)
        agent.wait_for_line("status: state      waiting for configuration (not ready)")
        assert agent.stop() == 0
