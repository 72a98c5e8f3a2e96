"""The choice of the external interface with IPv6, and with both families, over written-down hosts."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from flannel_udp.errors import FlannelError
from flannel_udp.host.interface import complete, decide, no_interface
from flannel_udp.host.interface_facts import Address, DefaultRoute, HostNetwork, Link, Reach
from flannel_udp.host.interface_why import explain, show, show_json
from flannel_udp.model import Ends, Interface
from flannel_udp.options import InterfaceOptions

BOTH, IPV6 = (4, 6), (6,)
LINK_LOCAL = Address(IPv6Address("fe80::1"), scope=253)
GLOBAL = Address(IPv6Address("2001:db8::2"))
LO = Link(1, "lo", 65_536, (Address(IPv4Address("127.0.0.1"), scope=254),), loopback=True)
ETH0 = Link(2, "eth0", 1500, (Address(IPv4Address("192.0.2.2")), GLOBAL, LINK_LOCAL))
ETH1 = Link(3, "eth1", 9000, (Address(IPv6Address("2001:db8:1::2")), LINK_LOCAL))
ETH2 = Link(4, "eth2", 1500, (Address(IPv4Address("198.51.100.2")), LINK_LOCAL))
HOST = HostNetwork((LO, ETH0, ETH1, ETH2), (DefaultRoute(2), DefaultRoute(3, 1024, 6), DefaultRoute(2, 2048, 6)))


def chosen(
    options: InterfaceOptions, host: HostNetwork = HOST, versions: tuple[int, ...] = BOTH
) -> tuple[str, str | None, str | None]:
    taken = decide(options, host, versions).interface
    assert taken is not None
    v4, v6 = (None if ends is None else str(ends.address) for ends in (taken.v4, taken.v6))
    return taken.name, v4, v6


def refusal(options: InterfaceOptions, host: HostNetwork, versions: tuple[int, ...]) -> str:
    choice = decide(options, host, versions)
    assert choice.interface is None
    return str(no_interface(choice, host, versions))


def with_addresses(*addresses: Address, carrier: bool = True) -> HostNetwork:
    return HostNetwork((replace(ETH0, addresses=addresses, carrier=carrier),), (DefaultRoute(2), DefaultRoute(2, 1, 6)))


def test_ipv6_alone_follows_its_own_default_route() -> None:
    assert decide(InterfaceOptions(), HOST, IPV6).interface == Interface(
        "eth1", 3, 9000, None, Ends(IPv6Address("2001:db8:1::2"), IPv6Address("2001:db8:1::2"))
    )


def test_with_both_it_is_one_interface_that_ipv4_chooses() -> None:
    assert chosen(InterfaceOptions()) == ("eth0", "192.0.2.2", "2001:db8::2")


def test_a_host_without_ipv4_goes_on_with_ipv6_and_the_other_way_round() -> None:
    ipv6_only = HostNetwork((LO, ETH1), HOST.default_routes)
    assert chosen(InterfaceOptions(), ipv6_only) == ("eth1", None, "2001:db8:1::2")
    assert decide(InterfaceOptions(), ipv6_only, BOTH).lacks == ("eth1 has no IPv4 address",)
    choice = decide(InterfaceOptions(iface=("eth2",)), HOST, BOTH)
    assert chosen(InterfaceOptions(iface=("eth2",))) == ("eth2", "198.51.100.2", None)
    assert choice.lacks == ("eth2 has no IPv6 address but link-local ones, which other hosts cannot dial",)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (InterfaceOptions(iface=("2001:db8::2",)), ("eth0", "192.0.2.2", "2001:db8::2")),
        (InterfaceOptions(iface=("192.0.2.2",)), ("eth0", "192.0.2.2", "2001:db8::2")),
        (InterfaceOptions(iface=("eth1",)), ("eth1", None, "2001:db8:1::2")),
        (InterfaceOptions(iface_regex=("^2001:db8:1",)), ("eth1", None, "2001:db8:1::2")),
        (InterfaceOptions(iface_regex=("^eth0",)), ("eth0", "192.0.2.2", "2001:db8::2")),
        (InterfaceOptions(iface_can_reach="2001:db8:7::9"), ("eth0", "192.0.2.2", "2001:db8::2")),
    ],
)
def test_an_option_of_either_family_names_the_interface(
    options: InterfaceOptions, expected: tuple[str, str | None, str | None]
) -> None:
    host = replace(HOST, reach=Reach(2, ip_address("2001:db8::2")))
    assert chosen(options, host) == expected


def test_a_route_to_a_link_local_address_names_the_interface_alone() -> None:
    """Its source address is link-local, too, and nobody can bind it without a scope."""
    host = replace(HOST, reach=Reach(2, LINK_LOCAL.address))
    assert chosen(InterfaceOptions(iface_can_reach="fe80::9"), host) == ("eth0", "192.0.2.2", "2001:db8::2")


def test_public_ipv6_is_registered_and_the_interfaces_own_address_bound() -> None:
    options = InterfaceOptions(public_ipv6=IPv6Address("2001:db8:99::1"))
    taken = decide(options, HOST, BOTH).interface
    assert taken is not None
    assert taken.v6 == Ends(IPv6Address("2001:db8::2"), IPv6Address("2001:db8:99::1"))
    assert taken.v4 == Ends(IPv4Address("192.0.2.2"), IPv4Address("192.0.2.2"))


def test_with_ipv6_alone_public_ipv6_chooses_the_interface_that_has_it() -> None:
    options = InterfaceOptions(public_ipv6=IPv6Address("2001:db8::2"))
    assert chosen(options, versions=IPV6) == ("eth0", None, "2001:db8::2")


@pytest.mark.parametrize(
    ("worse", "why"),
    [
        (replace(GLOBAL, address=IPv6Address("2001:db8::3"), deprecated=True), "it is deprecated"),
        (replace(GLOBAL, address=IPv6Address("2001:db8::3"), temporary=True), "it is one of those that change"),
        (replace(GLOBAL, address=IPv6Address("2001:db8::3"), tentative=True), "it is tentative: the kernel still"),
        (replace(GLOBAL, address=IPv6Address("2001:db8::3"), duplicate=True), "it is a duplicate: another host"),
    ],
)
def test_the_best_address_goes_first_whatever_the_kernels_order(worse: Address, why: str) -> None:
    host = with_addresses(worse, LINK_LOCAL, GLOBAL)
    assert chosen(InterfaceOptions(), host, IPV6) == ("eth0", None, "2001:db8::2")
    choice = decide(InterfaceOptions(), host, IPV6)
    reasons = {candidate.address: candidate.reason for candidate in explain(choice, host, IPV6)}
    assert reasons["2001:db8::3"].startswith(why)
    assert reasons["2001:db8::2"] == "the default route leads over it, with metric 1"
    assert "fe80::1" not in reasons


def test_an_address_that_came_later_changes_no_choice() -> None:
    """The kernel lists it first: one of keepalived or kube-vip, say, which another host has in a minute."""
    later = replace(GLOBAL, address=IPv6Address("2001:db8::100"))
    host = with_addresses(later, GLOBAL, LINK_LOCAL)
    for options in (InterfaceOptions(), InterfaceOptions(iface=("eth0",))):
        assert chosen(options, host, IPV6) == ("eth0", None, "2001:db8::2")
    choice = decide(InterfaceOptions(), host, IPV6)
    reasons = {candidate.address: candidate.reason for candidate in explain(choice, host, IPV6)}
    assert reasons["2001:db8::100"] == "2001:db8::2 was there before it"


@pytest.mark.parametrize("iface", [(), ("eth0",), ("192.0.2.2",)])
def test_a_public_ip_that_is_the_interfaces_own_is_what_packets_leave_from(iface: tuple[str, ...]) -> None:
    """From another address other hosts take nothing."""
    v4, v6 = IPv4Address("192.0.2.77"), IPv6Address("2001:db8::77")
    host = with_addresses(Address(IPv4Address("192.0.2.2")), Address(v4), Address(v6), GLOBAL)
    options = InterfaceOptions(iface=iface, public_ip=v4, public_ipv6=v6)
    assert chosen(options, host) == ("eth0", str(v4), str(v6))
    reasons = {candidate.address: candidate.reason for candidate in explain(decide(options, host, BOTH), host, BOTH)}
    if iface == ("eth0",):
        assert reasons["192.0.2.2"] == "192.0.2.77 is the one that an option names"
    assert reasons["2001:db8::2"].startswith("2001:db8::77 is the one that an option names")


def test_an_address_that_is_being_checked_is_waited_for_where_the_answer_can_come() -> None:
    tentative = replace(GLOBAL, tentative=True)
    ipv4 = Address(IPv4Address("192.0.2.2"))
    said = "2001:db8::2 of eth0 is tentative: the kernel still asks whether another host has it"
    choice = decide(InterfaceOptions(), with_addresses(ipv4, tentative), BOTH)
    assert (choice.waits, choice.lacks) == (True, (said,))
    assert not decide(InterfaceOptions(), with_addresses(ipv4, tentative, carrier=False), BOTH).waits
    duplicate = decide(InterfaceOptions(), with_addresses(ipv4, replace(tentative, duplicate=True)), BOTH)
    assert (duplicate.waits, duplicate.lacks) == (
        False,
        ("2001:db8::2 of eth0 is a duplicate: another host on the link has it",),
    )
    assert said in refusal(InterfaceOptions(), with_addresses(tentative), IPV6)


def test_a_link_local_address_by_name_is_refused_with_why() -> None:
    named = InterfaceOptions(iface=("fe80::1",))
    assert "--iface=fe80::1: it is link-local: another host may have the same (RFC 4291)" in refusal(named, HOST, IPV6)


def test_the_loopback_address_is_no_choice() -> None:
    lo = replace(LO, addresses=(*LO.addresses, Address(IPv6Address("::1"), scope=254)))
    text = refusal(InterfaceOptions(iface_regex=(".*",)), HostNetwork((lo,)), BOTH)
    assert "127.0.0.1 of lo is no address of one host" in text
    assert "::1 of lo is no address of one host" in text


def test_nothing_found_names_what_there_is_of_the_families_that_are_wanted() -> None:
    text = refusal(InterfaceOptions(), replace(HOST, default_routes=()), BOTH)
    assert text == str(
        FlannelError(
            "no interface to use: default route: this host has none for IPv4; default route: this host has none for "
            "IPv6; name one with --iface; interfaces that are up with an IPv4 or IPv6 address: "
            "eth0 (192.0.2.2 2001:db8::2), eth2 (198.51.100.2), eth1 (2001:db8:1::2)"
        )
    )


def test_people_and_programs_see_both_families() -> None:
    choice, stream, document = decide(InterfaceOptions(), HOST, BOTH), io.StringIO(), io.StringIO()
    show(choice, HOST, stream, BOTH)
    lines = stream.getvalue().splitlines()
    assert lines[:2] == [
        "eth0  192.0.2.2        chosen  the default route leads over it, with metric 0",
        "eth0  2001:db8::2      chosen  the IPv6 address of that interface",
    ]
    assert lines[-2:] == [
        "the agent binds to 192.0.2.2 of eth0, MTU 1500; other hosts dial the same",
        "the agent binds to 2001:db8::2 of eth0, MTU 1500; other hosts dial the same",
    ]
    show_json(choice, HOST, document, BOTH)
    assert json.loads(document.getvalue())["chosen"] == {
        "interface": "eth0",
        "address": "192.0.2.2",
        "public_ip": "192.0.2.2",
        "address_v6": "2001:db8::2",
        "public_ipv6": "2001:db8::2",
        "mtu": 1500,
        "by": "default route",
    }


def completed(options: InterfaceOptions, link: Link) -> Interface:
    """Return eth0, that was chosen with IPv4 alone, as it is completed on a host that has this link beside the rest."""
    alone = Interface("eth0", 2, 1500, Ends(IPv4Address("192.0.2.2"), IPv4Address("192.0.2.2")))
    return complete(options, replace(HOST, links=(LO, link, ETH1, ETH2)), alone, BOTH)


def test_an_address_that_has_come_since_completes_the_interface_that_was_chosen() -> None:
    found = completed(InterfaceOptions(), ETH0)
    assert found == decide(InterfaceOptions(), HOST, BOTH).interface
    assert found.v6 == Ends(IPv6Address("2001:db8::2"), IPv6Address("2001:db8::2"))
    assert complete(InterfaceOptions(), HOST, found, BOTH) == found


def test_the_address_that_an_option_names_is_the_one_that_is_waited_for() -> None:
    named = InterfaceOptions(iface=("eth0", "2001:db8::7"), public_ipv6=IPv6Address("2001:db8:ffff::1"))
    other = Address(IPv6Address("2001:db8::7"))
    of_option = completed(replace(named, iface=("2001:db8::7",)), replace(ETH0, addresses=(*ETH0.addresses, other)))
    assert of_option.v6 == Ends(other.address, IPv6Address("2001:db8:ffff::1"))


@pytest.mark.parametrize(
    "address",
    [LINK_LOCAL, replace(GLOBAL, tentative=True), replace(GLOBAL, duplicate=True, tentative=True)],
    ids=["link-local", "tentative", "duplicate"],
)
def test_what_cannot_be_used_completes_nothing(address: Address) -> None:
    assert completed(InterfaceOptions(), replace(ETH0, addresses=(ETH0.addresses[0], address))).v6 is None
