"""What a running agent writes to its log when it is asked to, and how much, in which form."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import Plan
from tests.support.agents import Agent, drops_of, peers_of, subnet_of, wait_for
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


def log_in_json(host: Host) -> list[dict[str, str]]:
    """Return the lines of a host's log; it is an error if one of them is no JSON."""
    return [json.loads(line) for line in host.log_file.read_text().splitlines()]


@pytest.mark.parametrize(
    ("verbosity", "there", "absent"),
    [
        ("0", ["acquired a new subnet 10.244.", "opened flannel0"], ["phase: ", "registry: "]),
        ("1", ["phase: running with subnet ", "lease: request to the registry: "], ["registry: ", "looked at"]),
        ("2", ["registry: revision ", "looked at this host (news)"], ["registry: list", "ran "]),
        ("3", ["registry: list the subnets: done, ", "ran iptables"], []),
    ],
)
def test_each_level_shows_what_its_help_says_and_no_line_of_a_library(
    host: Host, verbosity: str, there: list[str], absent: list[str]
) -> None:
    with Agent(host, "-v", verbosity, "--log-format=json") as agent:
        agent.wait_ready()
        wait_for("what the level adds", lambda: all(text in host.log_file.read_text() for text in there))
        assert agent.stop() == 0
    lines = log_in_json(host)
    said = [line["message"] for line in lines]
    assert [line for line in said if line.startswith(tuple(absent))] == []
    rooms = ("admin", "agent", "backend", "control", "dataplane", "handover", "host", "registry")
    assert {line["logger"].partition(".")[0] for line in lines} <= {*rooms}


def test_the_line_that_ends_an_agent_has_the_form_of_the_others(host: Host) -> None:
    with Agent(host, "--log-format=json") as first:  # it may say something at any time
        first.wait_ready()
        with Agent(host, "--log-format=json") as second:
            assert second.exit_code() == 1
        (last,) = [line for line in log_in_json(host) if line["level"] == "error"]
    assert f"pid {first.process.pid}" in last["message"]
    assert "--takeover" in last["message"]


def test_an_unknown_variable_is_a_warning_of_the_log(host: Host) -> None:
    with Agent(host, "--log-format=json", environment={"FLANNELD_IP_MASK": "true"}) as agent:
        agent.wait_ready()
        assert agent.stop() == 0
    (line,) = [line for line in log_in_json(host) if "FLANNELD_IP_MASK" in line["message"]]
    assert line["level"] == "warning"


def test_no_level_has_a_line_a_packet() -> None:
    """A thousand packets that are carried and a thousand that are dropped are a handful of lines."""
    with Lab(Plan(fresh_name(), agents=("h2",))) as lab:
        h1, h2 = lab.hosts
        with Agent(h1, "-v", "4") as agent:
            agent.wait_ready()
            h1.attach_pods()
            wait_for("the other host", lambda: len(peers_of(h1)) == 1)
            before = len(agent.said())
            h1.pods[0].run(["ping", "-f", "-c", "1000", "-W", "1", str(h2.pods[0].ip)], check=False)
            h1.pods[0].run(["ping", "-f", "-c", "1000", "-W", "1", "10.244.255.7"], check=False)
            wait_for("all are dropped", lambda: drops_of(h1, "out").get("no_route", 0) >= 1000)
            (peer,) = h1.control("/v1/peers")
            assert peer["packets_out"] >= 900
            assert len(agent.said()) - before < 100
