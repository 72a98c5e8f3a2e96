"""Addresses that lead nowhere, or back to us, are not believed, whoever wrote them; those that Linux routes are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import Plan
from tests.support.agents import Agent, Log, drops_of, peers_of, subnet_of, unanswered, up_with_peers, wait_for
from tests.support.by_hand import by_hand
from tests.support.labs import NEEDS_NETNS, fresh_name

pytestmark = NEEDS_NETNS

SUBNET = "10.244.200.0/24"
KEY = "10.244.200.0-24"


@pytest.fixture(scope="module", params=["udp", "host-gw", "alloc"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    config = {"Network": "10.244.0.0/16", "Backend": {"Type": request.param}}
    with Lab(Plan(fresh_name(), hosts=2, config=config)) as lab:
        yield up_with_peers(lab)


def value(lab: Lab, public_ip: str) -> str:
    kind = {} if lab.plan.backend == "udp" else {"BackendType": lab.plan.backend}
    return json.dumps({"PublicIP": public_ip, **kind})


@pytest.mark.parametrize(
    ("public_ip", "why"),
    [
        ("10.244.200.7", "is in the overlay network 10.244.0.0/16"),
        ("10.244.3.7", "is in the overlay network 10.244.0.0/16"),
        ("127.0.0.1", "is no address of one host"),
        ("169.254.3.3", "is link-local"),
        ("224.0.0.9", "is no address of one host"),
        ("0.0.0.0", "is no address of one host"),
        ("255.255.255.255", "is no address of one host"),
        ("192.0.2.255", "is the broadcast address of 192.0.2.0/24, which we are in"),
    ],
)
def test_an_entry_with_an_address_that_leads_nowhere_costs_one_line(lab: Lab, public_ip: str, why: str) -> None:
    h1 = lab.hosts[0]
    log, registry = Log(h1), by_hand(lab)
    registry.put(KEY, value(lab, public_ip))
    try:
        said = f"entry '{KEY}' is ignored: "
        wait_for("a line", lambda: any(line.startswith(said) for line in log.lines(KEY)))
        (line,) = (line for line in log.lines(KEY) if line.startswith(said))
        assert line.startswith(f"{said}PublicIP {public_ip} {why}")
        assert SUBNET not in peers_of(h1)
        registry.put(KEY, value(lab, "192.0.2.77"))
        wait_for("the right address is taken", lambda: peers_of(h1).get(SUBNET) == "192.0.2.77")
    finally:
        registry.delete(KEY)
    wait_for("it is gone", lambda: SUBNET not in peers_of(h1))


def test_a_peer_whose_address_becomes_ours_is_none_until_it_is_not(lab: Lab) -> None:
    h1 = lab.hosts[0]
    log, registry = Log(h1), by_hand(lab)
    registry.put(KEY, value(lab, "192.0.2.77"))
    try:
        wait_for("a peer", lambda: SUBNET in peers_of(h1))
        h1.configure("link add name other type bridge", "link set other up", "addr add 192.0.2.77/32 dev other")
        wait_for("no peer", lambda: SUBNET not in peers_of(h1))
        (line,) = log.events("is ignored")
        assert "PublicIP 192.0.2.77 is an address of this host, on other" in line
        h1.configure("link del other")
        wait_for("a peer again", lambda: SUBNET in peers_of(h1))
    finally:
        h1.run(["ip", "link", "del", "other"], check=False)
        registry.delete(KEY)


def test_a_peer_inside_its_own_subnet_makes_no_storm() -> None:
    """Once: one ping without "don't fragment", and 145,000 to 310,000 datagrams a second for ever."""
    plan = Plan(fresh_name(), hosts=1, reservations={SUBNET: "10.244.200.7"})
    with Lab(plan) as lab:
        (h1,) = lab.hosts
        h1.pods[0].run(["ping", "-c", "3", "-i", "0.2", "-W", "1", "-M", "dont", "10.244.200.9"], check=False)
        wait_for("all are dropped", lambda: drops_of(h1, "out").get("no_route", 0) >= 3)
        assert h1.control("/v1/status")["counters"]["out"]["packets"] == 0


@pytest.mark.parametrize(
    ("public_ip", "why"),
    [
        ("10.244.9.9", "--public-ip=10.244.9.9 is in the overlay network 10.244.0.0/16"),
        ("192.0.2.255", "--public-ip=192.0.2.255 is the broadcast address of eth0's network"),
        ("127.0.0.1", "--public-ip: 127.0.0.1 is no address of one host"),
    ],
)
def test_a_flag_with_such_an_address_is_refused(public_ip: str, why: str) -> None:
    with Lab(Plan(fresh_name(), hosts=1, agents=())) as lab, Agent(lab.hosts[0], f"--public-ip={public_ip}") as agent:
        assert agent.exit_code() == 2
        assert any(why in line for line in agent.said()), agent.said()


@pytest.mark.parametrize("backend", ["udp", "host-gw"])
def test_an_overlay_in_the_former_class_e_carries_traffic(backend: str) -> None:
    config: dict[str, Any] = {"Network": "240.10.0.0/16", "Backend": {"Type": backend}}
    with Lab(Plan(fresh_name(), hosts=2, config=config)) as lab:
        up_with_peers(lab)
        assert all(str(subnet_of(host)).startswith("240.10.") for host in lab.hosts)
        assert unanswered(lab.pods()) == []


def test_a_configuration_that_cannot_work_is_waited_for(lab: Lab) -> None:
    """One that names loopback, multicast, "this network" or the broadcast address: one line, no lease, and no exit."""
    if lab.plan.backend != "udp":
        pytest.skip("the reader is the same for all")
    with Lab(Plan(fresh_name(), hosts=1, agents=(), config={"Network": "224.10.0.0/16"})) as waiting:
        host: Host = waiting.hosts[0]
        with Agent(host) as agent:
            agent.wait_for_line("expected a network whose addresses hosts can have: 224.0.0.0/4 is multicast")
            by_hand(waiting).configure({"Network": "10.244.0.0/16"})
            agent.wait_ready()
