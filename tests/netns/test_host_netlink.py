"""The tunnel device's configuration and the interface choice, against real kernels in namespaces of their own."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any, TypeVar

import pytest
import uvloop
from pyroute2 import netns

from flannel_udp.errors import FlannelError
from flannel_udp.host.interface_facts import gather
from flannel_udp.host.netlink import configure_tunnel, external_state, tunnel_state, unconfigure
from flannel_udp.host.repair import LinkState, TunnelEnd, TunnelShape
from flannel_udp.model import Address, Interface
from flannel_udp.options import InterfaceOptions
from tests.support.interfaces import choose
from tests.support.labs import fresh_name
from tests.support.patience import PATIENCE_S

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make network namespaces"),
]

ADDRESS = IPv4Address("10.1.15.0")
NETWORK = IPv4Network("10.1.0.0/16")
SHAPE = TunnelShape((TunnelEnd(ADDRESS, NETWORK),), 1472)
NO_SUCH_INDEX = 999_999
T = TypeVar("T")


class Namespace:
    """A network namespace: `run` is a shell command inside, `call` runs a function inside, on a thread of its own."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, command: str) -> str:
        full = ["ip", "netns", "exec", self.name, *command.split()]
        return subprocess.run(full, check=True, capture_output=True, text=True, timeout=PATIENCE_S).stdout

    def json(self, command: str) -> Any:
        return json.loads(self.run(command) or "[]")

    def call(self, function: Callable[..., T], *arguments: object) -> T:
        results: list[T] = []
        errors: list[BaseException] = []

        def inside() -> None:
            try:
                netns.setns(self.name)  # of this thread only, and for good: it ends right after
                results.append(function(*arguments))
            except BaseException as error:  # handed to the caller's thread
                errors.append(error)

        thread = threading.Thread(target=inside)
        thread.start()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
        if errors:
            raise errors[0]
        return results[0]

    def routes(self) -> list[str]:
        """Return the main table as `ip` shows it; "linkdown" only says that nobody holds the TUN's descriptor."""
        return [line.replace(" linkdown", "").strip() for line in self.run("ip -4 route show").splitlines()]

    def addresses(self, device: str) -> list[str]:
        (link,) = self.json(f"ip -json -4 address show dev {device}") or [{}]
        return [f"{a['local']}/{a['prefixlen']}" for a in link.get("addr_info", [])]


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    name = fresh_name()
    subprocess.run(["ip", "netns", "add", name], check=True, timeout=PATIENCE_S)
    try:
        made = Namespace(name)
        made.run("ip link set lo up")
        yield made
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True, timeout=PATIENCE_S)


@pytest.fixture
def tun(namespace: Namespace) -> Namespace:
    """A namespace with a persistent flannel0, as a killed program with other habits than ours may leave it."""
    namespace.run("ip tuntap add dev flannel0 mode tun")
    return namespace


@pytest.fixture
def host(namespace: Namespace) -> Namespace:
    """A host: eth0 192.0.2.2/24 (default route), eth1 198.51.100.2/24 and .3/24, eth2 down, eth3 without address."""
    for device in ("eth0", "eth1", "eth2", "eth3"):
        namespace.run(f"ip link add {device} type veth peer name far-{device}")
    namespace.run("ip link set eth1 mtu 9000")
    for device in ("eth0", "eth1", "eth3"):
        namespace.run(f"ip link set far-{device} up")
        namespace.run(f"ip link set {device} up")
    namespace.run("ip address add 192.0.2.2/24 dev eth0")
    namespace.run("ip address add 198.51.100.2/24 dev eth1")
    namespace.run("ip address add 198.51.100.3/24 dev eth1")
    namespace.run("ip address add 203.0.113.2/24 dev eth2")
    namespace.run("ip route add default via 192.0.2.1 dev eth0 metric 100")
    return namespace


def configure(namespace: Namespace, address: IPv4Address = ADDRESS, network: IPv4Network = NETWORK) -> None:
    namespace.call(configure_tunnel, "flannel0", TunnelShape((TunnelEnd(address, network),), 1472), 1000)


def state_of(namespace: Namespace) -> tuple[LinkState | None, bool]:
    """Return the state of flannel0, if there is one, and whether the overlay's route leads there."""
    state, routed = namespace.call(lambda: tunnel_state(index_of("flannel0"), [NETWORK]))
    return state, NETWORK in routed


def index_of(device: str) -> int:
    try:
        return socket.if_nametoindex(device)
    except OSError:
        return NO_SUCH_INDEX


def find(namespace: Namespace, options: InterfaceOptions) -> Interface:
    return choose(options, namespace.call(gather, options))


# The tunnel device


def open_tun() -> int:
    """Return the descriptor of a new flannel0, which lives as long as that (linux/if_tun.h; struct ifreq: 40 bytes)."""
    tunsetiff, iff_tun, iff_no_pi = 0x400454CA, 0x0001, 0x1000
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(descriptor, tunsetiff, struct.pack("16sH22x", b"flannel0", iff_tun | iff_no_pi))
    return descriptor


def test_fresh_device_gets_flannels_shape_and_takes_it_along_when_closed(namespace: Namespace) -> None:
    descriptor = namespace.call(open_tun)
    try:
        configure(namespace)
        (link,) = namespace.json("ip -json address show dev flannel0")
        (marked,) = namespace.json("ip -json link show dev flannel0")
        assert namespace.routes() == ["10.1.0.0/16 dev flannel0"]  # as flanneld's: no proto, scope or source shown
    finally:
        os.close(descriptor)
    assert link["mtu"] == 1472
    assert link["txqlen"] == 1000
    assert marked["ifalias"] == "flannel-udp"
    assert "UP" in link["flags"]
    assert [(a["family"], a["local"], a["prefixlen"]) for a in link["addr_info"]] == [("inet", "10.1.15.0", 32)]
    assert state_of(namespace) == (None, False)
    assert namespace.routes() == []
    namespace.call(unconfigure, "flannel0")


def test_beside_a_running_uvloop_it_works_in_a_thread(tun: Namespace) -> None:
    async def on_uvloop() -> None:
        # Threads inherit the network namespace of the one that starts them.
        await asyncio.to_thread(configure_tunnel, "flannel0", SHAPE, 1000)

    tun.call(lambda: uvloop.run(on_uvloop()))
    assert tun.addresses("flannel0") == ["10.1.15.0/32"]


def test_state_of_the_host_can_be_asked(tun: Namespace) -> None:
    before, routed = state_of(tun)
    assert before is not None
    assert (before.name, before.up, before.addresses, routed) == ("flannel0", False, (), False)
    configure(tun)
    # Nobody holds its descriptor, so it has no carrier.
    after = LinkState("flannel0", before.index, 1472, True, (IPv4Interface((ADDRESS, 32)),), carrier=False)
    assert state_of(tun) == (after, True)
    assert tun.call(external_state, before.index, [ADDRESS]) == (after, frozenset[Address]({ADDRESS}))


@pytest.mark.parametrize(
    ("other", "routed"),
    [
        ("ip route add 10.1.0.0/17 dev lo", True),  # longer: it covers 10.1.0.0 and leaves ours as it is
        ("ip rule add to 10.1.0.0/16 table 100", True),
        ("ip route add 10.1.0.0/16 dev lo metric 5", True),
        ("ip route replace 10.1.0.0/16 dev lo", False),
        ("ip route replace blackhole 10.1.0.0/16", False),
        ("ip route del 10.1.0.0/16", False),
    ],
)
def test_only_the_overlays_own_route_counts(tun: Namespace, other: str, routed: bool) -> None:
    configure(tun)
    tun.run(other)
    assert state_of(tun)[1] is routed


def test_configuring_twice_is_the_same_as_once(tun: Namespace) -> None:
    configure(tun)
    once = (tun.routes(), tun.addresses("flannel0"))
    configure(tun)
    assert (tun.routes(), tun.addresses("flannel0")) == once


def test_what_a_killed_run_left_on_the_device_is_taken_over(tun: Namespace) -> None:
    tun.run("ip address add 10.1.15.0/16 dev flannel0")  # our address, but with a connected route
    tun.run("ip address add 10.1.99.0/32 dev flannel0")
    tun.run("ip address add 10.1.98.1/24 dev flannel0")
    tun.run("ip address add 10.1.98.2/24 dev flannel0")  # goes together with the one before
    tun.run("ip address add 10.1.15.0 peer 10.1.97.1/32 dev flannel0")
    tun.run("ip link set flannel0 up")
    tun.run("ip route add 10.1.0.0/16 dev flannel0 metric 7")
    tun.run("ip route add 10.2.0.0/16 dev flannel0 scope link")
    configure(tun)
    assert tun.addresses("flannel0") == ["10.1.15.0/32"]
    assert tun.routes() == ["10.1.0.0/16 dev flannel0"]


def test_a_new_lease_replaces_address_and_route(tun: Namespace) -> None:
    configure(tun)
    configure(tun, IPv4Address("10.7.3.0"), IPv4Network("10.7.0.0/16"))
    assert tun.addresses("flannel0") == ["10.7.3.0/32"]
    assert tun.routes() == ["10.7.0.0/16 dev flannel0"]


def test_overlay_route_through_another_device_is_taken_over_with_one_warning(
    tun: Namespace, caplog: pytest.LogCaptureFixture
) -> None:
    tun.run("ip tuntap add dev flannel1 mode tun")
    tun.run("ip link set flannel1 up")
    tun.run("ip route add 10.1.0.0/16 dev flannel1")
    with caplog.at_level(logging.WARNING):
        configure(tun)
        configure(tun)
    assert [r.getMessage() for r in caplog.records] == ["taking over the route 10.1.0.0/16, which led to flannel1"]
    assert tun.routes() == ["10.1.0.0/16 dev flannel0"]


def test_a_blackhole_in_place_of_the_overlay_route_is_taken_over(tun: Namespace) -> None:
    tun.run("ip route add blackhole 10.1.0.0/16")
    configure(tun)
    assert tun.routes() == ["10.1.0.0/16 dev flannel0"]


def test_routes_that_do_not_collide_are_left_alone(tun: Namespace) -> None:
    tun.run("ip link add eth0 type veth peer name far-eth0")
    tun.run("ip link set far-eth0 up")
    tun.run("ip link set eth0 up")
    tun.run("ip route add 10.1.0.0/16 dev eth0 metric 50")
    tun.run("ip route add 10.1.4.0/24 dev eth0")
    tun.run("ip route add 10.1.0.0/16 dev eth0 table 77")
    configure(tun)
    routes = tun.routes()
    assert "10.1.0.0/16 dev eth0 scope link metric 50" in routes
    assert "10.1.4.0/24 dev eth0 scope link" in routes
    assert len(routes) == 3
    assert "eth0" in tun.run("ip route show table 77")


def test_another_interfaces_own_network_is_refused_and_untouched(host: Namespace) -> None:
    host.run("ip tuntap add dev flannel0 mode tun")
    before = host.routes()
    with pytest.raises(FlannelError) as caught:
        configure(host, IPv4Address("192.0.2.0"), IPv4Network("192.0.2.0/24"))
    message = str(caught.value)
    assert message.startswith("the overlay network 192.0.2.0/24 is the own network of interface eth0: choose another")
    assert host.routes() == before
    assert host.addresses("flannel0") == []


def test_missing_device_is_one_clear_line(namespace: Namespace) -> None:
    with pytest.raises(FlannelError, match=r"^configuring flannel0: there is no such network device$"):
        configure(namespace)


def test_impossible_mtu_is_one_clear_line(tun: Namespace) -> None:
    with pytest.raises(FlannelError, match=r"^configuring flannel0: mtu less than device minimum$"):
        tun.call(configure_tunnel, "flannel0", replace(SHAPE, mtu=10), 1000)


def test_without_ipv6_on_the_host_the_device_is_configured_all_the_same(tun: Namespace) -> None:
    tun.run("sysctl -q -w net.ipv6.conf.all.disable_ipv6=1")
    configure(tun)
    assert tun.addresses("flannel0") == ["10.1.15.0/32"]


def test_unconfigure_leaves_a_foreign_device_clean(tun: Namespace) -> None:
    configure(tun)
    tun.run("ip route add 10.9.0.0/16 dev flannel0 metric 3")
    tun.call(unconfigure, "flannel0")
    assert tun.addresses("flannel0") == []
    assert tun.routes() == []
    state, _ = state_of(tun)
    assert state is not None
    assert not state.up
    (link,) = tun.json("ip -json link show dev flannel0")
    assert "ifalias" not in link


def test_without_capability_it_is_one_clear_line(tun: Namespace) -> None:
    code = (
        "from ipaddress import *; from flannel_udp.errors import FlannelError\n"
        "from flannel_udp.host.netlink import configure_tunnel\n"
        "from flannel_udp.host.repair import TunnelEnd, TunnelShape\n"
        "end = TunnelEnd(IPv4Address('10.1.15.0'), IPv4Network('10.1.0.0/16'))\n"
        "try: configure_tunnel('flannel0', TunnelShape((end,), 1472), 1000)\n"
        "except FlannelError as error: print(error)\n"
    )
    bare = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", sys.executable, "-c", code]
    done = subprocess.run(
        ["ip", "netns", "exec", tun.name, *bare], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert done.stdout == (
        "configuring flannel0: needs CAP_NET_ADMIN in this network namespace: run as root or grant the capability\n"
    )
    assert tun.addresses("flannel0") == []


# The choice of the external interface


def test_default_route_decides_when_nothing_is_said(host: Namespace) -> None:
    chosen = find(host, InterfaceOptions())
    assert (chosen.name, chosen.mtu, str(chosen.address), str(chosen.public_ip)) == (
        "eth0",
        1500,
        "192.0.2.2",
        "192.0.2.2",
    )
    assert chosen.index == host.json("ip -json link show dev eth0")[0]["ifindex"]


def test_lower_metric_and_next_hops_of_default_routes_count(host: Namespace) -> None:
    host.run("ip route add default metric 50 nexthop via 198.51.100.1 dev eth1 nexthop via 192.0.2.1 dev eth0")
    assert find(host, InterfaceOptions()).name == "eth1"


@pytest.mark.parametrize("compatible", [1, 0])
@pytest.mark.parametrize(
    ("nexthop", "name"), [("id 9 group 7", "eth1"), ("id 9 group 7/8", "eth1"), ("id 9 blackhole", "eth0")]
)
def test_the_nexthop_object_of_a_default_route_counts(
    host: Namespace, nexthop: str, name: str, compatible: int
) -> None:
    """With 0, as FRR and Cumulus set it, the kernel tells of a route the object's number alone."""
    host.run(f"sysctl -qw net.ipv4.nexthop_compat_mode={compatible}")
    for line in ("id 7 via 198.51.100.1 dev eth1", "id 8 via 192.0.2.1 dev eth0", nexthop):
        host.run(f"ip nexthop add {line}")
    host.run("ip route add default metric 50 nhid 9")
    assert find(host, InterfaceOptions()).name == name
    host.run("ip route del default metric 50")
    host.run("ip route add default metric 50 nhid 7")
    assert find(host, InterfaceOptions()).name == "eth1"


def test_the_nexthop_object_of_an_ipv6_default_route_counts(host: Namespace) -> None:
    host.run("sysctl -qw net.ipv4.nexthop_compat_mode=0")
    host.run("ip address add 2001:db8::2/64 dev eth1 nodad")
    host.run("ip nexthop add id 7 via 2001:db8::1 dev eth1")
    host.run("ip -6 route add default nhid 7")
    assert [route.version for route in host.call(gather, InterfaceOptions(), (6,)).default_routes] == [6]


def test_blackhole_default_route_and_those_of_other_tables_do_not_count(host: Namespace) -> None:
    host.run("ip route add blackhole default metric 1")
    host.run("ip route add default via 198.51.100.1 dev eth1 table 77")
    assert find(host, InterfaceOptions()).name == "eth0"


def test_no_default_route_is_one_clear_line(host: Namespace) -> None:
    host.run("ip route del default")
    with pytest.raises(FlannelError) as caught:
        find(host, InterfaceOptions())
    assert caught.value.exit_code == 1
    assert str(caught.value) == (
        "no interface to use: default route: this host has none for IPv4; name one with --iface; interfaces "
        "that are up with an IPv4 address: eth0 (192.0.2.2), eth1 (198.51.100.2 198.51.100.3)"
    )


def test_interface_by_name_by_address_and_by_regex(host: Namespace) -> None:
    assert str(find(host, InterfaceOptions(iface=("eth1",))).address) == "198.51.100.2"
    second = find(host, InterfaceOptions(iface=("198.51.100.3",), public_ip=IPv4Address("203.0.113.9")))
    assert (second.name, second.mtu, str(second.address)) == ("eth1", 9000, "198.51.100.3")
    assert str(second.public_ip) == "203.0.113.9"
    assert str(find(host, InterfaceOptions(iface_regex=(r"^198\..*\.3$",))).address) == "198.51.100.3"
    assert find(host, InterfaceOptions(iface_regex=("eth[1-9]",))).name == "eth1"


def test_can_reach_asks_the_kernel_for_route_and_source(host: Namespace) -> None:
    host.run("ip route add 203.0.113.128/25 via 198.51.100.1 dev eth1 src 198.51.100.3")
    chosen = find(host, InterfaceOptions(iface_can_reach="203.0.113.200"))
    assert (chosen.name, str(chosen.address)) == ("eth1", "198.51.100.3")


def test_can_reach_over_a_route_without_source_means_the_interfaces_own_address(host: Namespace) -> None:
    host.run("ip address flush dev lo")
    host.run("ip route add 203.0.113.128/25 dev eth1")
    assert str(find(host, InterfaceOptions(iface_can_reach="203.0.113.200")).address) == "198.51.100.2"


@pytest.mark.parametrize("route", ["unreachable", "prohibit", "blackhole"])
def test_can_reach_without_a_way_is_one_clear_line(host: Namespace, route: str) -> None:
    host.run(f"ip route add {route} 203.0.113.128/25")
    with pytest.raises(FlannelError, match=r"^no interface matches: --iface-can-reach=203.0.113.200: no route leads"):
        find(host, InterfaceOptions(iface_can_reach="203.0.113.200"))


def test_can_reach_our_own_address_is_no_way_out(host: Namespace) -> None:
    with pytest.raises(FlannelError, match="own address"):
        find(host, InterfaceOptions(iface_can_reach="192.0.2.2"))


def test_interface_that_is_down_or_bare_is_named_with_its_fault(host: Namespace) -> None:
    with pytest.raises(FlannelError) as caught:
        find(host, InterfaceOptions(iface=("eth2", "eth3", "eth9")))
    assert "--iface=eth2: eth2 is down; --iface=eth3: eth3 has no IPv4 address; --iface=eth9: no such" in str(
        caught.value
    )


def test_deprecated_addresses_come_last_and_link_local_ones_only_behind_a_public_ip(host: Namespace) -> None:
    host.run("ip address flush dev eth1")
    host.run("ip address add 169.254.7.7/16 dev eth1")
    host.run("ip address add 198.51.100.7/24 dev eth1 preferred_lft 0 valid_lft 1000")
    host.run("ip address add 198.51.101.8/24 dev eth1 preferred_lft 900 valid_lft 1000")
    host.run("ip address add 10.9.9.9/32 dev eth1 scope host")
    best = ["198.51.101.8", "198.51.100.7"]
    for public, expected in (
        (None, [*best, "10.9.9.9"]),
        (IPv4Address("203.0.113.9"), [*best, "169.254.7.7", "10.9.9.9"]),
    ):
        facts = host.call(gather, InterfaceOptions(public_ip=public))
        (link,) = [link for link in facts.links if link.name == "eth1"]
        assert [str(a) for a in link.ranked()] == expected


def test_point_to_point_address_is_our_end(host: Namespace) -> None:
    host.run("ip address flush dev eth1")
    host.run("ip address add 198.51.100.9 peer 198.51.100.200/32 dev eth1")
    assert str(find(host, InterfaceOptions(iface=("eth1",))).address) == "198.51.100.9"
