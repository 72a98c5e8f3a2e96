"""What the kernel does with IPv6 packets of the overlay, asked of real kernels: ways, parts, rules, refusals."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path

import pytest

from flannel_udp.errors import FlannelError
from flannel_udp.host.interface import decide
from flannel_udp.host.interface_facts import VERSIONS, gather
from flannel_udp.host.lookup.cut_off import Need, refuse_cut_off, resolvers
from flannel_udp.host.lookup.look import Findings, Look, look_up
from flannel_udp.host.lookup.pods_bridge import find_bare, look_for_bare
from flannel_udp.host.lookup.question import Ways
from flannel_udp.host.own_addresses import read_own_addresses
from flannel_udp.host.own_networks import read_own_networks
from flannel_udp.host.route_query import stream_default_routes
from flannel_udp.host.rtnetlink import open_rtnetlink, parse_route
from flannel_udp.lab.netns import call_inside
from flannel_udp.options import InterfaceOptions
from tests.support.agents import wait_for
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import PATIENCE_S

pytestmark = NEEDS_NETNS

NETWORK = IPv6Network("fd00:1::/48")
ADDRESS = IPv6Address("2001:db8::1")
OWN, PEER = IPv6Network("fd00:1:0:15::/64"), IPv6Network("fd00:1:0:16::/64")
DEFAULT = 'the route "default via 2001:db8::fe dev eth0 metric 1024 proto boot"'
HOST = """
link set lo up
link add eth0 type veth peer name far0
link set eth0 up
link set far0 up
address add 2001:db8::1/64 dev eth0 nodad
route add default via 2001:db8::fe dev eth0
link add cni0 type bridge
link set cni0 up
link add pod type veth peer name pod0
link set pod master cni0
link set pod up
link set pod0 up
address add fd00:1:0:15::1/64 dev cni0 nodad
tuntap add dev flannel0 mode tun
link set flannel0 up
address add fd00:1:0:15::/128 dev flannel0 nodad
route add fd00:1::/48 dev flannel0
"""


@pytest.fixture
def host() -> Iterator[str]:
    name = fresh_name()
    subprocess.run(["ip", "netns", "add", name], check=True, timeout=PATIENCE_S)
    try:
        subprocess.run(["ip", "-6", "-n", name, "-batch", "-"], input=HOST, text=True, check=True, timeout=PATIENCE_S)
        run(name, "sysctl -q -w net.ipv6.conf.all.forwarding=1")
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True, timeout=PATIENCE_S)


def run(host: str, command: str) -> str:
    whole = ["ip", "netns", "exec", host, *command.split()]
    return subprocess.run(whole, check=True, capture_output=True, text=True, timeout=PATIENCE_S).stdout


def index_of(host: str, device: str) -> int:
    return int(run(host, f"cat /sys/class/net/{device}/ifindex"))


def ways(host: str) -> Ways:
    return Ways(index_of(host, "flannel0"), {PEER: None})


def look(host: str, needs: list[Need] | None = None) -> Findings:
    expected = ways(host)
    return call_inside(host, lambda: Look(NETWORK).look(OWN, expected, needs or [], ADDRESS))


def texts(found: Findings) -> list[str]:
    return [item.text for items in (found.forwarding, found.routes, found.cut_off) for item in items]


def test_a_host_where_all_is_well_has_nothing_to_say(host: str) -> None:
    assert look(host) == Findings()  # so that it is looked for again after a while only


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("ip -6 route add fd00:1:0:16::/64 dev eth0", "ip -6 route del fd00:1:0:16::/64 dev eth0 metric 1024"),
        ("ip -6 route add blackhole fd00:1:0:16::7", "ip -6 route del blackhole fd00:1:0:16::7"),
        ("ip -6 rule add to fd00:1:0:16::/64 prohibit pref 50", "ip -6 rule del pref 50 from all to fd00:1:0:16::/64"),
        ("ip -6 rule add from fd00:1:0:15::/64 unreachable pref 50", "ip -6 rule del pref 50 from fd00:1:0:15::/64"),
        (
            "ip -6 rule add from 2001:db8::1 unreachable pref 50",
            "ip -6 rule del pref 50 from 2001:db8::1/128 unreachabl",
        ),
        ("ip -6 route add fd00:1:0:15::7 dev flannel0", "ip -6 route del fd00:1:0:15::7 dev flannel0 metric 1024"),
        ("ip -6 route del fd00:1::/48", "the overlay's own route to fd00:1::/48 is missing"),
        ("sysctl -q -w net.ipv6.conf.all.forwarding=0", "sysctl -w net.ipv6.conf.all.forwarding=1"),
    ],
)
def test_what_leads_ipv6_packets_elsewhere_is_named_with_the_way_out(host: str, change: str, said: str) -> None:
    run(host, change)
    found = texts(look(host))
    assert found, "nothing was found"
    assert any(said in text for text in found), found
    assert all("\n" not in text for text in found)


def test_a_default_route_of_router_advertisements_is_named_before_it_goes(host: str) -> None:
    run(host, "sysctl -q -w net.ipv6.conf.all.forwarding=0 net.ipv6.conf.eth0.accept_ra=1")
    run(host, "ip -6 route add default via 2001:db8::fd dev eth0 proto ra metric 512")
    (text,) = texts(look(host))
    assert text.endswith(
        "sysctl -w net.ipv6.conf.all.forwarding=1 net.ipv6.conf.eth0.accept_ra=2 "
        "(else the default route, which comes from router advertisements, goes)"
    )
    run(host, "sysctl -q -w net.ipv6.conf.eth0.accept_ra=2")
    (text,) = texts(look(host))
    assert text.endswith("sysctl -w net.ipv6.conf.all.forwarding=1")


def test_a_bridge_that_is_down_or_lost_its_address_is_named_with_what_brings_it_back(host: str) -> None:
    expected, lookout = ways(host), Look(NETWORK)

    def said() -> list[str]:
        return texts(call_inside(host, lambda: lookout.look(OWN, expected, [], ADDRESS)))

    assert said() == []
    run(host, "ip link set cni0 down")
    (down,) = said()
    lost = "has lost its address fd00:1:0:15::1/64: our pods have no gateway by IPv6"
    address = "ip -6 address add fd00:1:0:15::1/64 dev cni0"
    assert down == f"cni0 is down and {lost}: ip link set cni0 up && {address}"
    run(host, "ip link set cni0 up")
    assert said() == [f"cni0 {lost}: {address}"]
    run(host, address)
    assert said() == []


def test_a_bridge_with_pods_and_no_address_is_named_also_by_who_never_saw_it_with_one(host: str) -> None:
    expected, lookout = ways(host), Look(NETWORK)

    def said() -> list[str]:
        return texts(call_inside(host, lambda: lookout.look(OWN, expected, [], ADDRESS)))

    address = "ip -6 address add fd00:1:0:15::1/64 dev cni0"
    lost = "cni0 has lost its address fd00:1:0:15::1/64: our pods have no gateway by IPv6"
    run(host, "ip -6 address del fd00:1:0:15::1/64 dev cni0")
    assert said() == []  # the plugin may be about to give it one
    wait_for("named", lambda: said() == [f"{lost}: {address}"])
    (told,) = call_inside(host, lambda: look_for_bare(OWN))  # as doctor asks
    assert told.text == f"{lost}: {address}"
    run(host, address)
    assert said() == []
    assert call_inside(host, lambda: look_for_bare(OWN)) == []


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("link del cni0", "no bridge"),
        ("link set pod nomaster", "no pods"),
        ("address add 10.85.0.1/16 dev cni0", "pods by IPv4 alone, as before IPv6 was switched on"),
        ("address add fd00:1:0:15::1/128 dev pod", "the plugin ptp"),
        ("address add fd00:1:0:15::1/64 dev br0", "pods are on another one"),
    ],
    ids=["no-bridge", "empty", "ipv4", "ptp", "another"],
)
def test_a_bridge_without_an_address_that_costs_no_pod_its_gateway_is_fine(host: str, change: str, why: str) -> None:
    def bare() -> bool:
        with open_rtnetlink("looking for it") as netlink:
            return find_bare(netlink, OWN) is not None

    run(host, "ip link add br0 type bridge")
    run(host, "ip -6 address del fd00:1:0:15::1/64 dev cni0")
    assert call_inside(host, bare)
    run(host, f"ip {change}")
    assert not call_inside(host, bare), why


def test_a_bridge_that_is_removed_under_living_pods_is_named_until_they_are_gone_or_in_a_bridge(host: str) -> None:
    expected, lookout = ways(host), Look(NETWORK)

    def said() -> list[str]:
        return texts(call_inside(host, lambda: lookout.look(OWN, expected, [], ADDRESS)))

    def bring(*lines: str) -> None:
        for line in ("link add cni0 type bridge", "link set cni0 up", "address add fd00:1:0:15::1/64 dev cni0 nodad"):
            run(host, f"ip {line}")
        for line in lines:
            run(host, f"ip {line}")

    assert said() == []
    run(host, "ip link set cni0 down")  # its address is gone before it is
    assert len(said()) == 1
    run(host, "ip link del cni0")
    removed = "cni0, which our pods were behind, was removed: those that ran then are cut off (IPv6): start them anew"
    assert said() == said() == [removed]
    bring("link add new type veth peer name new0", "link set new master cni0 up")  # with the next pod
    assert said() == [removed]
    run(host, "ip link set pod master cni0")  # somebody helps himself
    assert said() == []
    run(host, "ip link del cni0")
    assert said() == [removed]
    run(host, "ip link del pod")
    assert said() == [removed]
    run(host, "ip link del new")
    assert said() == []
    bring()
    assert said() == []
    run(host, "ip link del cni0")  # an empty one
    assert said() == []


def test_what_the_agent_needs_inside_the_overlay_is_named(host: str) -> None:
    need = Need("the registry", IPv6Address("fd00:1:0:16::9"))
    (text,) = texts(look(host, [need]))
    assert text.startswith("the registry, fd00:1:0:16::9, is inside the overlay network fd00:1::/48, whose route leads")
    assert "ip -6 route add fd00:1:0:16::9 via GATEWAY" in text
    run(host, "ip -6 route del fd00:1::/48")
    with pytest.raises(FlannelError, match=r"would cut this host off from fd00:1:0:16::9, the registry: the route"):
        call_inside(host, lambda: refuse_cut_off(lambda to: NETWORK if to in NETWORK else None, [need]))
    run(host, "ip -6 route add fd00:1:0:16::9 via 2001:db8::fe")
    assert call_inside(host, lambda: refuse_cut_off(lambda to: NETWORK if to in NETWORK else None, [need])) == []


def test_one_address_is_looked_up_in_words(host: str) -> None:
    expected = ways(host)
    found = call_inside(host, lambda: look_up(IPv6Address("fd00:1:0:16::2"), NETWORK, OWN, expected))
    assert found.fault is None
    assert found.host == "fd00:1::/48 dev flannel0 metric 1024 proto boot"
    assert found.pods == found.host


def test_own_addresses_and_networks_are_of_both_families(host: str) -> None:
    run(host, "ip address add 192.0.2.1/24 dev eth0")
    own = call_inside(host, read_own_addresses)
    assert own[IPv6Address("2001:db8::1")] == "is an address of this host"
    assert own[IPv6Address("2001:db8::")] == "is the routers' anycast address of 2001:db8::/64, which we are in"
    networks = call_inside(host, read_own_networks)
    assert IPv6Network("2001:db8::/64") in {item.network for item in networks}


def test_an_address_that_another_host_has_is_not_ours_though_it_was_given_to_us(host: str) -> None:
    run(host, "sysctl -q -w net.ipv6.conf.eth0.accept_dad=1")
    run(host, "ip -6 address add 2001:db8::2/64 dev far0 nodad")
    run(host, "ip -6 address add 2001:db8::2/64 dev eth0")
    wait_for("the other end of the cable says so", lambda: "dadfailed" in run(host, "ip -6 address show dev eth0"))
    run(host, "ip -6 address del 2001:db8::2/64 dev far0")
    own = call_inside(host, read_own_addresses)
    assert {IPv6Address("2001:db8::1"), IPv6Address("2001:db8::2")} & set(own) == {IPv6Address("2001:db8::1")}


def test_the_default_route_is_found_though_the_kernel_lists_it_last(host: str) -> None:
    def ask() -> list[str]:
        with open_rtnetlink("listing the default routes") as netlink:
            return [str(parse_route(body).gateway) for body in stream_default_routes(netlink, 6)]

    assert call_inside(host, ask) == ["2001:db8::fe"]
    run(host, "ip address add 192.0.2.1/24 dev eth0")
    facts = call_inside(host, lambda: gather(InterfaceOptions(), VERSIONS))
    taken = decide(InterfaceOptions(), facts, VERSIONS).interface
    assert taken is not None and taken.v6 is not None
    assert (taken.name, str(taken.v6.address)) == ("eth0", "2001:db8::1")


def test_resolvers_of_either_family_are_read(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text("nameserver 192.0.2.53\nnameserver 2001:db8::53\nnameserver fe80::1%eth0\nnameserver x:y\n")
    assert [str(need.address) for need in resolvers([file], vital=True)] == ["192.0.2.53", "2001:db8::53"]
