"""Agents with udp and both IP versions: one takes over from another, drops are told, an address is followed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, Plan
from tests.support.agents import Agent, all_reach, command_line, pid_of, unanswered, wait_for, wait_for_pings
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
    old = pid_of(h1)
    with Agent(h1, "--takeover") as agent:
        agent.wait_for_take_over(old)
        for version in (4, 6):
            assert unanswered(duo.pods(), version) == []
        assert agent.stop() == 0


def test_drops_of_ipv6_are_told_by_their_addresses(duo: Lab) -> None:
    h1, _ = duo.hosts
    pod = duo.pods()[0]
    pod.run(["ping", "-c1", "-W1", "fd00:10:244:ffff::1"], check=False)
    wait_for("it is told", lambda: "fd00:10:244:ffff::1" in command_line(h1, "status", "--json").stdout)


def test_each_family_has_its_own_figures_and_says_what_stops_it(duo: Lab) -> None:
    h1, h2 = duo.hosts
    pod = duo.pods()[0]
    before = h1.control("/v1/status")["families"]
    for _ in range(3):
        pod.run(["ping", "-c1", "-W60", str(h2.pods[0].address(6))])
    pod.run(["ping", "-c1", "-W1", "fd00:10:244:ffff::1"], check=False)

    def unrouted(families: dict[str, Any], family: str) -> int:
        drops: dict[str, int] = families[family]["counters"]["out"]["drops"]
        return drops.get("no_route", 0)

    status: dict[str, Any] = {}

    def is_counted() -> bool:
        status.update(h1.control("/v1/status"))
        return unrouted(status["families"], "ipv6") > unrouted(before, "ipv6")

    wait_for("the one that leads nowhere is counted", is_counted)
    after = status["families"]
    assert after["ipv6"]["counters"]["out"]["packets"] >= before["ipv6"]["counters"]["out"]["packets"] + 3
    assert unrouted(after, "ipv4") == unrouted(before, "ipv4")
    wait_for("they add up", lambda: add_up(h1.control("/v1/status")))  # an echo may come while they are read
    assert [facts["peers"] for facts in after.values()] == [1, 1]
    h1.run(["sysctl", "-w", "net.ipv6.conf.all.forwarding=0"])
    wait_for("only IPv6 is stopped", lambda: degraded_of(h1) == {"ipv4": [], "ipv6": ["forwarding"]})


def add_up(status: dict[str, Any]) -> bool:
    """Tell whether the figures of the families are those of both together."""
    families, whole = status["families"].values(), status["counters"]
    return all(
        sum(facts["counters"][way][what] for facts in families) == whole[way][what]
        for way in ("out", "in")
        for what in ("packets", "bytes")
    )


def degraded_of(host: Host) -> dict[str, list[str]]:
    return {family: facts["degraded"] for family, facts in host.control("/v1/status")["families"].items()}


def test_the_sockets_of_ipv6_follow_its_address_while_ipv4_goes_on(duo: Lab) -> None:
    h1, _ = duo.hosts
    h1.configure("addr add 2001:db8::77/64 dev eth0 nodad", "addr del 2001:db8::1/64 dev eth0")
    wait_for("traffic by the new address", lambda: all_reach(duo, 6))
    assert unanswered(duo.pods(), 4) == []
    assert h1.control("/v1/status")["public_ipv6"] == "2001:db8::77"
