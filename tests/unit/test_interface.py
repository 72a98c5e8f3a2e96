"""flannel's order of choosing the external interface, over written-down hosts."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_udp.errors import FlannelError, UsageError
from flannel_udp.host.interface import Address, DefaultRoute, HostNetwork, Link, Reach, choose, decide, gather
from flannel_udp.host.links import Device
from flannel_udp.model import Ends, Interface
from flannel_udp.options import InterfaceOptions


def addresses(*texts: str) -> tuple[Address, ...]:
    return tuple(Address(IPv4Address(text)) for text in texts)


LO = Link(1, "lo", 65_536, (Address(IPv4Address("127.0.0.1"), scope=254),), loopback=True)
ETH0 = Link(2, "eth0", 1500, addresses("192.0.2.2"))
ETH1 = Link(3, "eth1", 9000, addresses("198.51.100.2", "10.0.0.2"))
DOWN = Link(4, "wlan0", 1500, addresses("203.0.113.2"), up=False)
BARE = Link(5, "bare0", 1500)
HOST = HostNetwork(
    links=(LO, ETH0, ETH1, DOWN, BARE),
    default_routes=(DefaultRoute(link_index=3, metric=100), DefaultRoute(link_index=2, metric=20)),
)


def chosen(options: InterfaceOptions, host: HostNetwork = HOST) -> tuple[str, str]:
    interface = choose(options, host)
    return interface.name, str(interface.address)


def refusal(options: InterfaceOptions, host: HostNetwork = HOST) -> str:
    with pytest.raises(FlannelError) as caught:
        choose(options, host)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_without_options_the_default_route_of_lowest_metric_decides() -> None:
    assert choose(InterfaceOptions(), HOST) == Interface(
        "eth0", 2, 1500, Ends(IPv4Address("192.0.2.2"), IPv4Address("192.0.2.2"))
    )


def test_a_default_route_over_an_unusable_interface_is_passed_over() -> None:
    routes = (DefaultRoute(4, 1), DefaultRoute(5, 2), DefaultRoute(99, 3), DefaultRoute(3, 4))
    assert chosen(InterfaceOptions(), HostNetwork(HOST.links, routes)) == ("eth1", "198.51.100.2")


@pytest.mark.parametrize(
    ("routes", "reason"),
    [((), "this host has none for IPv4"), ((DefaultRoute(4), DefaultRoute(5)), "wlan0 is down; bare0 has no IPv4 ad")],
)
def test_no_usable_default_route_is_a_failure_with_a_way_out(routes: tuple[DefaultRoute, ...], reason: str) -> None:
    with pytest.raises(FlannelError) as caught:
        choose(InterfaceOptions(), HostNetwork(HOST.links, routes))
    assert caught.value.exit_code == 1
    assert f"default route: {reason}" in str(caught.value)
    assert "name one with --iface; interfaces that are up with an IPv4 address: eth0 (192.0.2.2), eth1" in str(
        caught.value
    )


def test_public_ip_is_registered_and_the_interfaces_own_address_bound() -> None:
    interface = choose(InterfaceOptions(public_ip=IPv4Address("203.0.113.77")), HOST)
    assert (str(interface.address), str(interface.public_ip)) == ("192.0.2.2", "203.0.113.77")


def test_iface_takes_a_name_or_an_address() -> None:
    assert chosen(InterfaceOptions(iface=("eth1",))) == ("eth1", "198.51.100.2")
    assert chosen(InterfaceOptions(iface=("10.0.0.2",))) == ("eth1", "10.0.0.2")


def test_ifaces_are_tried_in_order_and_failures_told() -> None:
    choice = decide(InterfaceOptions(iface=("eth9", "wlan0", "eth1", "eth0")), HOST)
    assert (str(choice.made), choice.interface and choice.interface.name) == ("--iface=eth1", "eth1")
    assert choice.refusals == ("--iface=eth9: no such interface", "--iface=wlan0: wlan0 is down")


def test_a_public_ip_alone_chooses_the_interface_that_has_it() -> None:
    assert chosen(InterfaceOptions(public_ip=IPv4Address("10.0.0.2"))) == ("eth1", "10.0.0.2")
    # Any flag that names an interface goes first.
    named = InterfaceOptions(iface=("eth0",), public_ip=IPv4Address("10.0.0.2"))
    assert chosen(named) == ("eth0", "192.0.2.2")


def test_a_public_ip_of_an_interface_that_is_down_is_waited_for() -> None:
    message = refusal(InterfaceOptions(public_ip=IPv4Address("203.0.113.2")))
    assert message.startswith("no interface to use: --public-ip=203.0.113.2: wlan0 is down; name one with --iface;")


def test_a_public_ip_that_is_nobodys_here_leaves_the_default_route() -> None:
    choice = decide(InterfaceOptions(public_ip=IPv4Address("203.0.113.77")), HOST)
    assert choice.interface == Interface("eth0", 2, 1500, Ends(IPv4Address("192.0.2.2"), IPv4Address("203.0.113.77")))
    assert choice.refusals == ("--public-ip=203.0.113.77: no interface has this address: a NAT in front of us",)


def test_a_public_ip_on_a_dummy_that_is_down_leaves_the_default_route() -> None:
    """kube-proxy keeps the addresses of Services on one, among them what a NAT in front of this host may have."""
    ipvs = Link(6, "kube-ipvs0", 1500, addresses("203.0.113.77"), up=False, leads_out=False)
    options = InterfaceOptions(public_ip=IPv4Address("203.0.113.77"))
    assert chosen(options, replace(HOST, links=(*HOST.links, ipvs))) == ("eth0", "192.0.2.2")


def test_a_public_ip_on_the_loopback_or_a_dummy_chooses_it() -> None:
    """Where a routing daemon announces it, packets to other hosts have to leave from there."""
    options = InterfaceOptions(public_ip=IPv4Address("203.0.113.77"))
    lo = replace(LO, addresses=(*LO.addresses, *addresses("203.0.113.77")), leads_out=False)
    assert chosen(options, replace(HOST, links=(lo, *HOST.links[1:]))) == ("lo", "203.0.113.77")
    dummy = Link(6, "dummy0", 1500, addresses("203.0.113.77"), leads_out=False)
    assert chosen(options, replace(HOST, links=(*HOST.links, dummy))) == ("dummy0", "203.0.113.77")


def test_of_the_interfaces_with_an_address_one_that_packets_leave_by_goes_first() -> None:
    lo = replace(LO, addresses=(*LO.addresses, *addresses("10.0.0.2")), leads_out=False)
    host = replace(HOST, links=(lo, *HOST.links[1:]))
    assert chosen(InterfaceOptions(iface=("10.0.0.2",)), host) == ("eth1", "10.0.0.2")


def test_every_iface_comes_before_every_regex_and_those_before_can_reach() -> None:
    host = HostNetwork(HOST.links, (), Reach(3, IPv4Address("10.0.0.2")))
    everything = InterfaceOptions(iface=("eth1",), iface_regex=("eth0",), iface_can_reach="8.8.8.8")
    assert chosen(everything, host)[0] == "eth1"
    assert chosen(InterfaceOptions(iface=("x",), iface_regex=("eth0",), iface_can_reach="8.8.8.8"), host)[0] == "eth0"
    last = InterfaceOptions(iface=("x",), iface_regex=("y",), iface_can_reach="8.8.8.8")
    assert chosen(last, host) == ("eth1", "10.0.0.2")


def test_regex_tries_addresses_before_names_and_each_regex_on_both() -> None:
    odd = Link(7, "198.51", 1500, addresses("192.0.2.7"))
    host = HostNetwork((odd, *HOST.links))
    assert chosen(InterfaceOptions(iface_regex=(r"198\.51",)), host) == ("eth1", "198.51.100.2")
    assert chosen(InterfaceOptions(iface_regex=("eth0", "^10[.]")), host)[0] == "eth0"


def test_regex_binds_the_address_that_matched_and_is_not_anchored() -> None:
    assert chosen(InterfaceOptions(iface_regex=("^10[.]",))) == ("eth1", "10.0.0.2")
    assert chosen(InterfaceOptions(iface_regex=("th1",))) == ("eth1", "198.51.100.2")


def test_regex_prefers_a_wire_to_the_loopback() -> None:
    assert chosen(InterfaceOptions(iface_regex=(".*",)))[0] == "eth0"
    assert chosen(InterfaceOptions(iface_regex=("^127",))) == ("lo", "127.0.0.1")


def with_our_own_devices(*wires: Link) -> HostNetwork:
    """Return a host on which the overlay 10.244.0.0/16 is, with its devices before the wires."""
    ours = (Link(6, "cni0", 1472, addresses("10.244.5.1")), Link(7, "flannel0", 1472, addresses("10.244.5.0")))
    routes = (DefaultRoute(6, 1), DefaultRoute(7, 2), *(DefaultRoute(link.index, 3) for link in wires))
    host = HostNetwork((LO, *ours, *wires), routes, Reach(7, IPv4Address("10.244.5.0")))
    return host.outside([IPv4Network("10.244.0.0/16"), IPv6Network("fd00:1::/48")])


@pytest.mark.parametrize(
    "options",
    [InterfaceOptions(iface_regex=("^10[.]",)), InterfaceOptions(iface_regex=("cni|eth1",)), InterfaceOptions()],
    ids=str,
)
def test_an_address_in_the_overlay_is_passed_over(options: InterfaceOptions) -> None:
    """What leaves from it comes back into the tunnel."""
    wire = Link(8, "eth1", 1500, addresses("10.0.0.2"))
    assert chosen(options, with_our_own_devices(wire)) == ("eth1", "10.0.0.2")


@pytest.mark.parametrize(
    "options", [InterfaceOptions(iface_regex=("^10[.]",)), InterfaceOptions(iface=("cni0", "eth1"))], ids=str
)
def test_the_pods_bridge_is_passed_over_also_with_the_address_of_a_former_overlay(options: InterfaceOptions) -> None:
    links = (Link(6, "cni0", 1472, addresses("10.1.3.1")), Link(8, "eth1", 1500, addresses("10.0.0.2")))
    host = HostNetwork(links).outside([IPv4Network("10.244.0.0/16")])
    assert chosen(options, host) == ("eth1", "10.0.0.2")
    assert "10.1.3.1 of cni0 is on the pods' bridge" in refusal(InterfaceOptions(iface=("cni0",)), host)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (InterfaceOptions(iface_regex=("^10[.]",)), "--iface-regex=^10[.]: matches no address and no name"),
        (InterfaceOptions(iface_regex=("cni0",)), "10.244.5.1 of cni0 lies in the overlay network 10.244.0.0/16: what"),
        (InterfaceOptions(iface_can_reach="10.244.7.1"), "--iface-can-reach=10.244.7.1: no route leads there"),
        (InterfaceOptions(), "default route: 10.244.5.1 of cni0 lies in the overlay network 10.244.0.0/16: what leav"),
    ],
)
def test_where_all_addresses_are_in_the_overlay_there_is_no_choice(options: InterfaceOptions, reason: str) -> None:
    assert reason in refusal(options, with_our_own_devices())


def test_a_link_local_address_over_a_default_route_goes_behind_another_routes_global_one() -> None:
    alone = Link(6, "usb0", 1500, (Address(IPv4Address("169.254.7.1"), scope=253),))
    routes = (DefaultRoute(6, 1), DefaultRoute(2, 20))
    assert chosen(InterfaceOptions(), HostNetwork((alone, *HOST.links), routes)) == ("eth0", "192.0.2.2")
    assert chosen(InterfaceOptions(), HostNetwork((alone,), routes)) == ("usb0", "169.254.7.1")


def test_same_address_on_two_interfaces_means_the_one_that_is_up() -> None:
    host = HostNetwork((Link(8, "old0", 1500, addresses("192.0.2.2"), up=False), *HOST.links))
    assert chosen(InterfaceOptions(iface=("192.0.2.2",)), host)[0] == "eth0"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (InterfaceOptions(iface=("eth9",)), "--iface=eth9: no such interface"),
        (InterfaceOptions(iface=("",)), "--iface=: no such interface"),
        (InterfaceOptions(iface=("192.0.2.99",)), "--iface=192.0.2.99: no interface has this address"),
        (InterfaceOptions(iface=("wlan0",)), "--iface=wlan0: wlan0 is down"),
        (InterfaceOptions(iface=("203.0.113.2",)), "--iface=203.0.113.2: wlan0 is down"),
        (InterfaceOptions(iface=("bare0",)), "--iface=bare0: bare0 has no IPv4 address"),
        (InterfaceOptions(iface_regex=("nope",)), "--iface-regex=nope: matches no address and no name"),
        (
            InterfaceOptions(iface_regex=("^(wlan|bare)",)),
            "--iface-regex=^(wlan|bare): wlan0 is down and bare0 has no IPv4 address",
        ),
        (InterfaceOptions(iface_can_reach="203.0.113.9"), "--iface-can-reach=203.0.113.9: no route leads there"),
    ],
)
def test_each_option_that_leads_nowhere_has_its_reason(options: InterfaceOptions, reason: str) -> None:
    message = refusal(options)
    assert message.startswith(f"no interface matches: {reason}")
    assert message.endswith(
        "; interfaces that are up with an IPv4 address: eth0 (192.0.2.2), eth1 (198.51.100.2 10.0.0.2), lo (127.0.0.1)"
    )


def test_all_options_that_were_tried_are_named_and_the_default_route_is_no_fallback() -> None:
    message = refusal(InterfaceOptions(iface=("a", "b"), iface_regex=("c$",), iface_can_reach="203.0.113.9"))
    for option in ("--iface=a: ", "--iface=b: ", "--iface-regex=c$: ", "--iface-can-reach=203.0.113.9: "):
        assert option in message


def test_a_host_without_any_address_says_so() -> None:
    assert refusal(InterfaceOptions(iface=("x",)), HostNetwork((BARE,))).endswith("with an IPv4 address: none")


@pytest.mark.parametrize("broken", ["(", "[a", "*", "a{99999999999999999999}"])
def test_broken_regex_is_wrong_usage_even_where_an_iface_would_match(broken: str) -> None:
    message = refusal(InterfaceOptions(iface=("eth0",), iface_regex=(broken,)))
    assert message.startswith(f"--iface-regex={broken}: not a regular expression: ")


@pytest.mark.parametrize("text", ["nowhere", "fd00::1::", "192.0.2.256", "192.0.2.0/24"])
def test_can_reach_must_be_an_ip_address(text: str) -> None:
    with pytest.raises(UsageError, match=r"not an IP address$") as caught:
        gather(InterfaceOptions(iface_can_reach=text))
    assert str(caught.value).startswith(f"--iface-can-reach={text}: ")


@given(st.lists(st.tuples(st.sampled_from([0, 200, 253, 254]), st.booleans()), min_size=1, max_size=8))
def test_best_address_is_never_worse_than_another(kinds: list[tuple[int, bool]]) -> None:
    """Widest scope first; there, one that is not deprecated; there, the kernel's first."""
    listed = tuple(
        Address(IPv4Address(0xC6336400 + i), scope, deprecated) for i, (scope, deprecated) in enumerate(kinds)
    )
    first = Link(2, "eth0", 1500, listed).ranked()[0]
    best = next(a for a in listed if a.address == first)
    rivals = [a for a in listed if a.scope <= best.scope]
    assert all(a.scope == best.scope for a in rivals)
    if best.deprecated:
        assert all(a.deprecated for a in rivals)
    assert best == next(a for a in rivals if a.deprecated == best.deprecated)


@pytest.mark.parametrize(("kind", "leads_out"), [("", True), ("veth", True), ("bridge", True), ("dummy", False)])
def test_no_packet_leaves_by_a_dummy(kind: str, leads_out: bool) -> None:
    assert Device(2, "kube-ipvs0", 1500, True, True, False, True, 0, kind, False).leads_out is leads_out
