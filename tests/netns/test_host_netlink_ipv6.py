"""The tunnel device's IPv6 half against real kernels: its address, the overlay's route, and what stands in the way."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import pytest

from flannel_udp.errors import FlannelError
from flannel_udp.host import disabled_ipv6
from flannel_udp.host.blackhole import keep_blackholes, restore_blackhole
from flannel_udp.host.links import device_named
from flannel_udp.host.netlink import configure_tunnel, repair_tunnel, tunnel_state, unconfigure
from flannel_udp.host.repair import Fault, TunnelEnd, TunnelShape, differences
from flannel_udp.host.rtnetlink import open_rtnetlink
from flannel_udp.lab.netns import call_inside
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import PATIENCE_S

pytestmark = NEEDS_NETNS

END4 = TunnelEnd(IPv4Address("10.1.15.0"), IPv4Network("10.1.0.0/16"))
END6 = TunnelEnd(IPv6Address("fd00:1:0:15::"), IPv6Network("fd00:1::/48"))
BOTH = TunnelShape((END4, END6), 1452)
IPV6_ALONE = TunnelShape((END6,), 1452)
ROUTE = "fd00:1::/48 dev flannel0 metric 1024"


@pytest.fixture
def namespace() -> Iterator[str]:
    name = fresh_name()
    subprocess.run(["ip", "netns", "add", name], check=True, timeout=PATIENCE_S)
    try:
        run(name, "ip link set lo up")
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True, timeout=PATIENCE_S)


@pytest.fixture
def tun(namespace: str) -> str:
    """A namespace with a persistent flannel0 that nobody holds."""
    run(namespace, "ip tuntap add dev flannel0 mode tun")
    return namespace


def run(namespace: str, command: str) -> str:
    whole = ["ip", "netns", "exec", namespace, *command.split()]
    return subprocess.run(whole, check=True, capture_output=True, text=True, timeout=PATIENCE_S).stdout


def routes(namespace: str, *, version: int = 6) -> list[str]:
    """Return the main table but for what the kernel made; "linkdown" only says that nobody holds the descriptor."""
    lines = run(namespace, f"ip -{version} route show").replace(" linkdown", "").replace(" pref medium", "")
    return [line.strip() for line in lines.splitlines() if "proto kernel" not in line]


def addresses(namespace: str) -> list[str]:
    found = json.loads(run(namespace, "ip -json address show dev flannel0"))[0]["addr_info"]
    return [f"{each['local']}/{each['prefixlen']}" for each in found]


def missing(namespace: str, shape: TunnelShape) -> list[Fault]:
    """Return what flannel0 lacks, but for its carrier: nobody holds it."""
    index = index_of(namespace)
    link, routed = call_inside(namespace, lambda: tunnel_state(index, [end.network for end in shape.ends]))
    assert link is not None
    return [fault for fault in differences(shape, link, routed) if fault != Fault("link")]


def index_of(namespace: str) -> int:
    def ask() -> int:
        with open_rtnetlink("asking for flannel0") as netlink:
            found = device_named(netlink, "flannel0")
            assert found is not None
            return found.index

    return call_inside(namespace, ask)


def configure(namespace: str, shape: TunnelShape) -> None:
    call_inside(namespace, lambda: configure_tunnel("flannel0", shape, 1000))


@pytest.mark.parametrize("shape", [BOTH, IPV6_ALONE])
def test_each_family_has_its_first_address_alone_and_the_overlays_route(tun: str, shape: TunnelShape) -> None:
    for _ in range(2):
        configure(tun, shape)
        assert addresses(tun) == [f"{end.address}/{end.address.max_prefixlen}" for end in shape.ends]  # and no fe80::
        assert routes(tun) == [ROUTE]
        assert missing(tun, shape) == []


def test_what_an_earlier_lease_left_goes(tun: str) -> None:
    configure(tun, TunnelShape((TunnelEnd(IPv6Address("fd00:2:0:7::"), IPv6Network("fd00:2::/48")),), 1452))
    run(tun, "ip address add fd00:1:0:15::/64 dev flannel0")
    configure(tun, BOTH)
    assert addresses(tun) == ["10.1.15.0/32", "fd00:1:0:15::/128"]
    assert routes(tun) == [ROUTE]
    call_inside(tun, lambda: unconfigure("flannel0"))
    assert addresses(tun) == []
    assert routes(tun) == []


@pytest.mark.parametrize(
    ("change", "faults"),
    [
        ("ip address del fd00:1:0:15::/128 dev flannel0", [Fault("address", END6)]),
        ("ip -6 route del fd00:1::/48 dev flannel0", [Fault("route", END6)]),
        ("ip -6 route replace fd00:1::/48 dev lo", [Fault("route", END6)]),
        ("ip link set flannel0 mtu 1200", [Fault("mtu"), Fault("address", END6), Fault("route", END6)]),
        ("ip -6 route add fd00:1::/48 dev lo metric 7", []),  # before ours, which is there: said by `host.lookup`
        ("ip -6 route add fd00:1::/64 dev lo", []),
    ],
)
def test_what_somebody_changed_is_found_and_put_right(tun: str, change: str, faults: list[Fault]) -> None:
    configure(tun, BOTH)
    run(tun, change)
    index = index_of(tun)
    assert missing(tun, BOTH) == faults
    for fault in faults:
        call_inside(tun, partial(repair_tunnel, index, BOTH.mtu, fault))
    assert missing(tun, BOTH) == []
    assert ROUTE in routes(tun)


def test_a_link_that_was_down_gets_all_of_it_back(tun: str) -> None:
    configure(tun, BOTH)
    run(tun, "ip link set flannel0 down")
    index = index_of(tun)
    found = missing(tun, BOTH)
    assert found == [Fault("address", END6), Fault("route", END4), Fault("route", END6)]
    call_inside(tun, lambda: repair_tunnel(index, BOTH.mtu, found[0]))
    run(tun, "ip link set flannel0 up")
    for fault in found[1:]:
        call_inside(tun, partial(repair_tunnel, index, BOTH.mtu, fault))
    assert missing(tun, BOTH) == []


def test_another_interfaces_own_network_costs_ipv6_alone(tun: str) -> None:
    run(tun, "ip link add eth0 type veth peer name far-eth0")
    run(tun, "ip link set eth0 up")
    run(tun, "ip link set far-eth0 up")
    run(tun, "ip address add fd00:1::1/48 dev eth0")
    configure(tun, BOTH)
    assert addresses(tun) == ["10.1.15.0/32"]
    assert routes(tun, version=4) == ["10.1.0.0/16 dev flannel0"]
    with pytest.raises(FlannelError, match=r"overlay network fd00:1::/48 is the own network of interface eth0: choose"):
        configure(tun, IPV6_ALONE)


@pytest.mark.parametrize("at", ["the start", "run time"])
def test_ipv6_that_is_disabled_on_the_device_is_switched_on(tun: str, at: str) -> None:
    """New devices may be without (net.ipv6.conf.default.disable_ipv6), or somebody has switched it off."""
    if at == "run time":
        configure(tun, BOTH)
    run(tun, "sysctl -q -w net.ipv6.conf.flannel0.disable_ipv6=1")
    if at == "the start":
        configure(tun, BOTH)
    index = index_of(tun)
    for fault in missing(tun, BOTH):
        call_inside(tun, partial(repair_tunnel, index, BOTH.mtu, fault))
    assert missing(tun, BOTH) == []
    assert addresses(tun) == ["10.1.15.0/32", "fd00:1:0:15::/128"]


def test_where_we_may_not_switch_it_on_it_costs_ipv6_alone_and_is_one_clear_line(
    tun: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disabled_ipv6, "_SETTINGS", tmp_path)  # in a container /proc/sys is read-only
    run(tun, "sysctl -q -w net.ipv6.conf.flannel0.disable_ipv6=1")
    configure(tun, BOTH)
    assert addresses(tun) == ["10.1.15.0/32"]
    assert missing(tun, BOTH) == [Fault("address", END6), Fault("route", END6)]
    said = r"^IPv6 is disabled on flannel0: sysctl -w net\.ipv6\.conf\.flannel0\.disable_ipv6=0$"
    with pytest.raises(FlannelError, match=said):
        configure(tun, IPV6_ALONE)
    index = index_of(tun)
    for what in ("address", "route"):
        with pytest.raises(FlannelError, match=said):
            call_inside(tun, partial(repair_tunnel, index, BOTH.mtu, Fault(what, END6)))


def test_blackhole_routes_of_former_networks_go_and_those_of_other_overlays_stay(namespace: str) -> None:
    ours = ["10.1.15.0/24", "10.244.3.0/24", "fd00:1:0:7::/64"]
    for subnet in (*ours, "10.9.3.0/24"):
        run(namespace, f"ip route add blackhole {subnet} metric 4294967295")
    networks = [*map(IPv4Network, ("10.1.0.0/16", "10.244.0.0/16")), END6.network]
    call_inside(namespace, lambda: keep_blackholes(networks, [IPv4Network(ours[0])]))
    found = run(namespace, "ip route show type blackhole")
    assert [line.split()[1] for line in found.splitlines()] == ["10.1.15.0/24", "10.9.3.0/24"]
    assert routes(namespace) == []


def test_the_blackhole_route_of_ipv6_is_kept_like_ipv4s(namespace: str) -> None:
    run(namespace, "ip -6 route add blackhole fd00:1:0:7::/64 metric 4294967295")  # of an earlier lease
    run(namespace, "ip -6 route add blackhole fd00:1:0:8::/64 metric 7")  # an administrator's
    subnet = IPv6Network("fd00:1:0:15::/64")
    call_inside(namespace, lambda: keep_blackholes([END6.network], [subnet]))
    wanted = ["blackhole fd00:1:0:8::/64 dev lo metric 7", "blackhole fd00:1:0:15::/64 dev lo metric 4294967295"]
    assert routes(namespace) == wanted
    assert not call_inside(namespace, lambda: restore_blackhole(subnet))
    run(namespace, "ip -6 route del blackhole fd00:1:0:15::/64")
    assert call_inside(namespace, lambda: restore_blackhole(subnet))
    call_inside(namespace, lambda: keep_blackholes([END6.network], ()))
    assert routes(namespace) == wanted[:1]
