"""A host with very many routes of its own: the agent asks for what it needs, and reads no more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Network

import pytest

from flannel_udp.host.interface_facts import gather
from flannel_udp.host.links import device_named
from flannel_udp.host.netlink import configure_tunnel, tunnel_state
from flannel_udp.host.own_networks import read_own_networks
from flannel_udp.host.repair import TunnelEnd, TunnelShape
from flannel_udp.host.rtnetlink import Rtnetlink, open_rtnetlink
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.netns import call_inside
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import Plan
from flannel_udp.options import InterfaceOptions
from tests.support.footprint import footprint_of_an_agent
from tests.support.labs import NEEDS_NETNS, fresh_name

pytestmark = NEEDS_NETNS

ROUTES = 200_000
MEMORY_MAX_BYTES = 120 << 20
CPU_MAX_S = 3.0
"""Of the agent, from its start through three repairs; counted, so that a busy machine does not matter."""


def internet() -> Iterator[str]:
    """Yield `ip` commands for a table like that of a router with a whole Internet in it."""
    first = int(IPv4Address("20.0.0.0"))
    for n in range(ROUTES):
        yield f"route add {IPv4Address(first + (n << 8))}/24 via 192.0.2.254"


@pytest.fixture(scope="module", params=["udp", "host-gw"])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    config = {"Network": "10.244.0.0/16", "Backend": {"Type": request.param}}
    with Lab(Plan(fresh_name(), hosts=2, config=config, agents=("h2",))) as lab:
        lab.hosts[0].configure(*internet())
        yield lab.hosts[0]


@pytest.mark.parametrize("iface", ["eth0", None])
def test_an_agent_on_a_host_with_an_internets_routes_is_as_small_and_quick_as_elsewhere(
    host: Host, iface: str | None, record_property: Callable[[str, object], None]
) -> None:
    found = footprint_of_an_agent(host, iface)
    record_property("figure", str(found))
    assert found.memory_bytes < MEMORY_MAX_BYTES
    assert found.cpu_s < CPU_MAX_S


def test_every_look_takes_a_handful_of_datagrams(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    datagrams: list[int] = []
    receive = Rtnetlink._receive

    def counted(netlink: Rtnetlink) -> Iterator[tuple[int, int, int, bytes]]:
        datagrams.append(1)
        return receive(netlink)

    monkeypatch.setattr(Rtnetlink, "_receive", counted)
    network = IPv4Network("10.244.0.0/16")

    def index_of(name: str) -> int:
        with open_rtnetlink("looking") as netlink:
            found = device_named(netlink, name)
        assert found is not None
        return found.index

    def looks() -> None:
        index = index_of("tun9")
        configure_tunnel("tun9", TunnelShape((TunnelEnd(network.network_address, network),), 1472), 1000)
        assert tunnel_state(index, [network])[1]
        gather(InterfaceOptions())
        read_own_networks()

    host.configure(
        "tuntap add dev tun9 mode tun", "rule add to 10.244.0.0/16 table 77", f"route add {network} dev lo table 77"
    )
    try:
        call_inside(host.namespace, looks)
    finally:
        host.configure("link del tun9", "rule del to 10.244.0.0/16 table 77")
    assert len(datagrams) < 50
