"""flannel's order of choosing the external interface, over written-down hosts."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_udp.errors import FlannelError, UsageError
from flannel_udp.host.interface import decide
from flannel_udp.host.interface_facts import Address, DefaultRoute, HostNetwork, Link, Reach, gather
from flannel_udp.host.links import Device
from flannel_udp.model import Ends, Interface
from flannel_udp.options import InterfaceOptions
from tests.support.interfaces import choose


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


@pytest.mark.parametrize(
    ("text", "name"),
    [("enp0s5", "ens5"), ("eth0.100@eth0", "eth0.100"), ("eth0@if7", "eth0"), ("eth1@x", "eth1@x")],
)
def test_iface_takes_a_name_as_ip_shows_it(text: str, name: str) -> None:
    more = (
        Link(6, "eth0.100", 1500, addresses("192.0.2.6")),
        Link(7, "ens5", 1500, addresses("192.0.2.7"), altnames=("enp0s5", "enx020000000007")),
        Link(8, "eth1@x", 1500, addresses("192.0.2.8")),  # the kernel takes such a name, too
    )
    assert chosen(InterfaceOptions(iface=(text,)), replace(HOST, links=(*HOST.links, *more)))[0] == name


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
    lo = replace(LO, addresses=(*LO.addresses, *addresses("203.0.113.77")))
    host = replace(HOST, links=(lo, *HOST.links[1:]))
    assert chosen(InterfaceOptions(iface_regex=(".*",)), host)[0] == "eth0"
    assert chosen(InterfaceOptions(iface_regex=("^203",)), host) == ("lo", "203.0.113.77")


USB0 = Link(6, "usb0", 1500, (Address(IPv4Address("169.254.7.1"), scope=253),))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (InterfaceOptions(), "default route: 169.254.7.1 of usb0 is link-local: another host may have the same"),
        (InterfaceOptions(iface=("usb0",)), "--iface=usb0: 169.254.7.1 of usb0 is link-local"),
        (InterfaceOptions(iface=("169.254.7.1",)), "--iface=169.254.7.1: 169.254.7.1 of usb0 is link-local"),
        (InterfaceOptions(iface=("lo",)), "--iface=lo: 127.0.0.1 of lo is no address of one host"),
        (InterfaceOptions(iface_regex=("^127",)), "--iface-regex=^127: matches no address and no name"),
        (InterfaceOptions(iface_regex=(".*",)), "127.0.0.1 of lo is no address of one host and 169.254.7.1 of usb0 is"),
        (InterfaceOptions(iface_can_reach="8.8.8.8"), "--iface-can-reach=8.8.8.8: 169.254.7.1 of usb0 is link-local"),
    ],
)
def test_an_address_that_no_host_dials_is_no_choice(options: InterfaceOptions, reason: str) -> None:
    """Every other host ignores an entry with such a public IP."""
    host = HostNetwork((LO, USB0), (DefaultRoute(6, 1),), Reach(6, IPv4Address("169.254.7.1")))
    assert reason in refusal(options, host)
    assert refusal(options, host).endswith("interfaces that are up with an IPv4 address: none")


@pytest.mark.parametrize(
    "flags",
    [
        InterfaceOptions(),
        InterfaceOptions(iface=("usb0",)),
        InterfaceOptions(iface=("169.254.7.1",)),
        InterfaceOptions(iface_regex=(".*",)),
    ],
)
def test_a_link_local_address_is_a_choice_where_others_dial_another_one(flags: InterfaceOptions) -> None:
    public = IPv4Address("203.0.113.77")
    lo, usb0 = (replace(link, addresses=(replace(link.addresses[0], behind_nat=True),)) for link in (LO, USB0))
    host = HostNetwork((lo, usb0), (DefaultRoute(6, 1),))
    found = choose(replace(flags, public_ip=public), host)
    assert (found.name, found.v4) == ("usb0", Ends(IPv4Address("169.254.7.1"), public))
    assert "127.0.0.1 of lo" in refusal(InterfaceOptions(iface=("lo",), public_ip=public), host)


def test_of_a_route_whose_source_no_host_dials_the_interface_has_another_address() -> None:
    usb0 = replace(USB0, addresses=(*USB0.addresses, *addresses("192.0.2.7")))
    host = HostNetwork((LO, usb0), (), Reach(6, IPv4Address("169.254.7.1")))
    assert chosen(InterfaceOptions(iface_can_reach="8.8.8.8"), host) == ("usb0", "192.0.2.7")


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


@pytest.mark.parametrize("public", [None, IPv4Address("203.0.113.77")])
def test_a_link_local_address_over_a_default_route_goes_behind_another_routes_global_one(
    public: IPv4Address | None,
) -> None:
    usb0 = replace(USB0, addresses=(replace(USB0.addresses[0], behind_nat=public is not None),))
    host = HostNetwork((usb0, *HOST.links), (DefaultRoute(6, 1), DefaultRoute(2, 20)))
    assert chosen(InterfaceOptions(public_ip=public), host) == ("eth0", "192.0.2.2")


FLANNEL_1 = Link(7, "flannel.1", 1450, addresses("10.9.0.77"), tunnel=True)


@pytest.mark.parametrize(
    "options",
    [
        InterfaceOptions(),
        InterfaceOptions(iface=("10.9.0.77",)),
        InterfaceOptions(iface_regex=("^10[.]9",)),
        InterfaceOptions(iface_regex=("flannel",)),
        InterfaceOptions(iface_can_reach="8.8.8.8"),
    ],
)
def test_a_tunnel_device_of_an_agents_is_no_way_out(options: InterfaceOptions) -> None:
    host = HostNetwork((FLANNEL_1,), (DefaultRoute(7, 1),), Reach(7, IPv4Address("10.9.0.77")))
    reasons = ("flannel.1 is a tunnel device of flannel-udp's, by its alias", "matches no address and no name")
    assert any(reason in refusal(options, host) for reason in reasons)
    if not options.by_flags:
        eth0_too = HostNetwork((FLANNEL_1, ETH0), (DefaultRoute(7, 1), DefaultRoute(2, 303)))
        assert chosen(options, eth0_too) == ("eth0", "192.0.2.2")


def test_of_an_address_on_a_tunnel_device_and_a_wire_the_wire_is_meant() -> None:
    wire = replace(ETH0, addresses=addresses("10.9.0.77"))
    assert chosen(InterfaceOptions(iface=("10.9.0.77",)), HostNetwork((FLANNEL_1, wire)))[0] == "eth0"


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
        "; interfaces that are up with an IPv4 address: eth0 (192.0.2.2), eth1 (198.51.100.2 10.0.0.2)"
    )


def test_of_the_unusable_interfaces_that_a_pattern_matches_some_are_named() -> None:
    pods = tuple(Link(index, f"veth{index}", 1500) for index in range(10, 1000))
    message = refusal(InterfaceOptions(iface_regex=("veth",)), HostNetwork(pods))
    named = " and ".join(f"veth{index} has no IPv4 address" for index in (10, 11, 12))
    assert f"--iface-regex=veth: {named}, and others as well; interfaces that are up" in message


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
