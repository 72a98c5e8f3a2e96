"""Networks that the host is in and the overlay are one in the other: a longer prefix decides, and one line says so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import Plan
from flannel_udp.lab.probe import ping_matrix
from tests.support.agents import (
    Agent,
    move_address,
    peers_of,
    start_agents,
    subnet_of,
    unanswered,
    up_with_peers,
    wait_for,
)
from tests.support.labs import NEEDS_NETNS, fresh_name

pytestmark = NEEDS_NETNS

OVERLAY = "10.244.0.0/16"
BESIDE_THE_HOSTS = {"Network": "192.0.0.0/16", "SubnetMin": "192.0.64.0", "SubnetMax": "192.0.127.0"}
"""As in the example of flannel's configuration.md: the hosts' network is inside, and nobody gets it."""


@pytest.fixture(params=["udp", "vxlan", "host-gw"])
def duo(request: pytest.FixtureRequest) -> Iterator[Lab]:
    config = {"Network": OVERLAY, "Backend": {"Type": request.param}}
    with Lab(Plan(fresh_name(), hosts=2, config=config, agents=())) as lab:
        yield lab


def inside(wide: str, device: str) -> str:
    return (
        f"the overlay network {OVERLAY} is inside {wide}, the own network of interface {device}: this host reaches no "
        "other one there that has an address in the overlay: if it has to, choose another Network, or give "
        f"{device} a smaller network"
    )


def said_of_networks(host: Host) -> list[str]:
    return [line for line in host.log_file.read_text().splitlines() if "the overlay network" in line]


def test_an_overlay_inside_the_network_of_a_vpn_or_of_the_hosts_themselves_is_one_warning(duo: Lab) -> None:
    h1, h2 = duo.hosts
    h1.configure("link add tun0 type bridge", "link set tun0 up", "addr add 10.8.0.5/8 dev tun0")
    h2.configure("addr add 10.9.0.2/8 dev eth0")
    start_agents(duo.hosts)
    assert unanswered(duo.pods()) == []
    for host, device in ((h1, "tun0"), (h2, "eth0")):
        (line,) = said_of_networks(host)
        assert line.endswith(inside("10.0.0.0/8", device))
        assert host.control("/v1/status")["problems"] == []
    h1.replace_agent()
    assert len(said_of_networks(h1)) == 2
    assert unanswered(duo.pods()) == []


@pytest.mark.parametrize("backend", ["udp", "vxlan", "host-gw"])
def test_hosts_whose_own_network_is_inside_the_overlay_and_leased_to_nobody_reach_each_other(backend: str) -> None:
    config: dict[str, Any] = {**BESIDE_THE_HOSTS, "Backend": {"Type": backend}}
    with Lab(Plan(fresh_name(), hosts=2, config=config)) as lab:
        up_with_peers(lab)
        assert unanswered(lab.pods()) == []
        for host in lab.hosts:
            assert host.control("/v1/status")["problems"] == []


def test_one_that_may_be_leased_is_refused_with_what_to_do() -> None:
    config = {"Network": "192.0.0.0/16", "Backend": {"Type": "vxlan"}}
    with Lab(Plan(fresh_name(), hosts=1, config=config, agents=())) as lab, Agent(lab.hosts[0]) as agent:
        line = agent.wait_for_line("the overlay network 192.0.0.0/16 holds 192.0.2.0/24")
        assert line.startswith(
            "reading the network configuration failed: the overlay network 192.0.0.0/16 holds 192.0.2.0/24, the own "
            "network of interface eth0, which its datagrams leave by, and a host may get a subnet there: "
            "choose another Network, or SubnetMin and SubnetMax that leave it out"
        )


def test_another_address_of_the_hosts_inside_the_overlay_is_followed() -> None:
    with Lab(Plan(fresh_name(), hosts=2, config=BESIDE_THE_HOSTS)) as lab:
        h1, h2 = up_with_peers(lab).hosts
        move_address(h1, h1.underlay, "192.0.2.77")
        wait_for("the other one is told", lambda: peers_of(h2).get(str(subnet_of(h1))) == "192.0.2.77")
        wait_for("packets pass", lambda: None not in ping_matrix(lab.pods(), 0.5).values())
