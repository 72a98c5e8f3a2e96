"""Agents with udp and both IP versions: one takes over from another, drops are told, an address is followed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.plan import OVERLAY, Plan
from tests.support.agents import Agent, all_reach, command_line, wait_for, wait_for_pings
from tests.support.labs import NEEDS_NETNS, fresh_name

pytestmark = NEEDS_NETNS


@pytest.fixture
def duo() -> Iterator[Lab]:
    config = {"Network": str(OVERLAY), "Backend": {"Type": "udp"}}
    with Lab(Plan(fresh_name(), hosts=2, families="46", config=config)) as lab:
        wait_for_pings(lab, (4, 6))
        yield lab


def test_a_take_over_hands_on_the_sockets_of_both_versions(duo: Lab) -> None:
    h1, _ = duo.hosts
    old = h1.agent_pid()
    with Agent(h1, "--takeover") as agent:
        agent.wait_for_line(f"took over from process {old}, which ran flannel-udp ")
        wait_for("the old one has ended", lambda: h1.agent_pid() is None)
        agent.wait_ready()
        for version in (4, 6):
            assert all_reach(duo, version)
        assert agent.stop() == 0


def test_drops_of_ipv6_are_told_by_their_addresses(duo: Lab) -> None:
    h1, _ = duo.hosts
    pod = duo.pods()[0]
    pod.run(["ping", "-c1", "-W1", "fd00:10:244:ffff::1"], check=False)
    shown = command_line(h1, "status", "--json").stdout
    assert "fd00:10:244:ffff::1" in shown


def test_the_sockets_of_ipv6_follow_its_address_while_ipv4_goes_on(duo: Lab) -> None:
    h1, _ = duo.hosts
    h1.configure("addr add 2001:db8::77/64 dev eth0 nodad", "addr del 2001:db8::1/64 dev eth0")
    wait_for("traffic by the new address", lambda: all_reach(duo, 6))
    assert all_reach(duo, 4)
    assert h1.control("/v1/status")["public_ipv6"] == "2001:db8::77"
