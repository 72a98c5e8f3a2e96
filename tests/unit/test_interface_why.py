"""Why each address of a host is taken as the external one or not, over written-down hosts."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_udp.host.interface import decide
from flannel_udp.host.interface_facts import Address, DefaultRoute, HostNetwork, Link, Reach
from flannel_udp.host.interface_why import explain, show, show_json
from flannel_udp.options import InterfaceOptions
from tests.support.interfaces import choose

LO = Link(1, "lo", 65_536, (Address(IPv4Address("127.0.0.1"), scope=254),), loopback=True)
ETH0 = Link(
    2,
    "eth0",
    1500,
    (
        Address(IPv4Address("169.254.0.2"), scope=253),
        Address(IPv4Address("192.0.2.5"), deprecated=True),
        Address(IPv4Address("192.0.2.2")),
        Address(IPv4Address("192.0.2.3")),
    ),
)
ETH1 = Link(3, "eth1", 9000, (Address(IPv4Address("198.51.100.2")),))
DOWN = Link(4, "wlan0", 1500, (Address(IPv4Address("203.0.113.2")),), up=False)
BARE = Link(5, "bare0", 1500)
HOST = HostNetwork(
    (LO, ETH0, ETH1, DOWN, BARE),
    (DefaultRoute(2, metric=20), DefaultRoute(3, metric=100)),
    Reach(3, IPv4Address("198.51.100.2")),
)


def reasons(options: InterfaceOptions, host: HostNetwork = HOST) -> dict[str, str]:
    return {found.address or found.interface: found.reason for found in explain(decide(options, host), host)}


def test_by_the_default_route() -> None:
    assert reasons(InterfaceOptions()) == {
        "192.0.2.2": "the default route leads over it, with metric 20",
        "192.0.2.3": "192.0.2.2 was there before it",
        "192.0.2.5": "it is deprecated, 192.0.2.2 is not",
        "169.254.0.2": "it is link-local: another host may have the same (RFC 3927)",
        "198.51.100.2": "its default route has metric 100, and that over eth0 goes first",
        "127.0.0.1": "it is no address of one host",
        "203.0.113.2": "wlan0 is down",
        "bare0": "bare0 has no IPv4 address",
    }


def test_what_lies_in_the_overlay_or_is_link_local_has_its_reason() -> None:
    usb0 = Link(6, "usb0", 1500, (Address(IPv4Address("169.254.7.1"), scope=253),))
    cni0 = Link(7, "cni0", 1472, (Address(IPv4Address("10.244.5.1")),))
    host = HostNetwork((ETH0, usb0, cni0), (DefaultRoute(6, 1), DefaultRoute(2, 20)))
    found = reasons(InterfaceOptions(), host.outside([IPv4Network("10.244.0.0/16")]))
    assert found["192.0.2.2"] == "the default route leads over it, with metric 20"
    assert found["169.254.7.1"] == "it is link-local: another host may have the same (RFC 3927)"
    assert found["10.244.5.1"].startswith("it lies in the overlay network 10.244.0.0/16: what leaves")


def test_a_link_local_address_that_nobody_has_to_dial_goes_last() -> None:
    usb0 = Link(6, "usb0", 1500, (Address(IPv4Address("169.254.7.1"), scope=253, behind_nat=True),))
    eth0 = replace(ETH0, addresses=(replace(ETH0.addresses[0], behind_nat=True), *ETH0.addresses[1:]))
    host = HostNetwork((eth0, usb0), (DefaultRoute(6), DefaultRoute(2, 9)))
    found = reasons(InterfaceOptions(public_ip=IPv4Address("203.0.113.77")), host)
    assert found["169.254.7.1"] == "it is link-local, and a default route leads over eth0, too"
    assert found["169.254.0.2"] == (
        "its scope is narrower than that of 192.0.2.2: a global address goes before a link-local one"
    )


def test_by_name_by_address_and_by_route() -> None:
    named = reasons(InterfaceOptions(iface=("eth0",)))
    assert named["192.0.2.2"] == "--iface=eth0 names it"
    assert named["192.0.2.5"] == "it is deprecated, 192.0.2.2 is not"
    assert named["198.51.100.2"] == "--iface=eth0 names another"
    by_address = reasons(InterfaceOptions(iface=("192.0.2.5",)))
    assert by_address["192.0.2.5"] == "--iface=192.0.2.5 names it"
    assert by_address["192.0.2.2"] == "--iface=192.0.2.5 names another"
    reached = reasons(InterfaceOptions(iface_can_reach="203.0.113.99"))
    assert reached["198.51.100.2"] == "the route to 203.0.113.99 leaves from here"
    assert reached["192.0.2.2"] == "the route to 203.0.113.99 leaves from 198.51.100.2 of eth1"


def test_by_regex() -> None:
    by_name = reasons(InterfaceOptions(iface_regex=("^eth",)))
    assert by_name["192.0.2.2"] == "the first that --iface-regex=^eth matches"
    assert by_name["192.0.2.3"] == "192.0.2.2 was there before it"
    assert by_name["198.51.100.2"] == "the name eth1 matches too, and eth0 goes first"
    assert reasons(InterfaceOptions(iface_regex=("^eth0",)))["198.51.100.2"] == (
        "--iface-regex=^eth0 matches neither the address nor eth1"
    )
    by_address = reasons(InterfaceOptions(iface_regex=(r"^198|eth0|[.]3$",)))
    assert by_address["192.0.2.3"] == "the first that --iface-regex=^198|eth0|[.]3$ matches"
    assert by_address["198.51.100.2"] == "it matches too, and 192.0.2.3 of eth0 goes first"
    assert by_address["192.0.2.2"] == "the name eth0 matches, but addresses go before names"


def test_without_a_choice_every_address_has_its_reason() -> None:
    assert reasons(InterfaceOptions(iface=("eth9",)))["192.0.2.2"] == "no option leads to it"
    assert reasons(InterfaceOptions(), HostNetwork(HOST.links))["192.0.2.2"] == "no default route leads over it"


def test_people_read_the_chosen_one_first_what_was_passed_over_and_what_is_dialled() -> None:
    options = InterfaceOptions(iface=("eth9", "eth1"), public_ip=IPv4Address("203.0.113.77"))
    stream = io.StringIO()
    show(decide(options, HOST), HOST, stream)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "eth1   198.51.100.2     chosen  --iface=eth1 names it"
    assert lines[-3:] == [
        "bare0  -                not     bare0 has no IPv4 address",
        "passed over: --iface=eth9: no such interface",
        "the agent binds to 198.51.100.2 of eth1, MTU 9000; other hosts dial 203.0.113.77 (--public-ip)",
    ]


def test_by_the_public_ip() -> None:
    own = reasons(InterfaceOptions(public_ip=IPv4Address("198.51.100.2")))
    assert own["198.51.100.2"] == "--public-ip=198.51.100.2 is its address"
    assert own["192.0.2.2"] == own["192.0.2.3"] == "--public-ip=198.51.100.2 names another"
    behind_nat = reasons(InterfaceOptions(public_ip=IPv4Address("203.0.113.77")))
    assert behind_nat["192.0.2.2"] == "the default route leads over it, with metric 20"


def test_programs_get_a_document() -> None:
    stream = io.StringIO()
    show_json(decide(InterfaceOptions(iface=("eth9",)), HostNetwork((BARE,))), HostNetwork((BARE,)), stream)
    assert json.loads(stream.getvalue()) == {
        "chosen": None,
        "refused": ["--iface=eth9: no such interface"],
        "candidates": [
            {"interface": "bare0", "address": None, "chosen": False, "reason": "bare0 has no IPv4 address"},
        ],
    }


OPTIONS = st.builds(
    InterfaceOptions,
    iface=st.lists(st.sampled_from(["eth0", "eth1", "192.0.2.3", "wlan0", "nope"]), max_size=2).map(tuple),
    iface_regex=st.lists(st.sampled_from(["eth", "[.]2$", "^127", ".*", "bare", "nope"]), max_size=2).map(tuple),
    iface_can_reach=st.sampled_from(["", "203.0.113.99"]),
    public_ip=st.sampled_from([None, *map(IPv4Address, ("198.51.100.2", "192.0.2.3", "203.0.113.2", "203.0.113.77"))]),
)


@given(OPTIONS)
def test_what_is_explained_as_chosen_is_what_the_agent_takes(options: InterfaceOptions) -> None:
    choice = decide(options, HOST)
    candidates = explain(choice, HOST)
    assert all(candidate.reason for candidate in candidates)
    chosen = [(candidate.interface, candidate.address) for candidate in candidates if candidate.chosen]
    if choice.interface is None:
        assert chosen == []
        with pytest.raises(Exception, match="no interface"):
            choose(options, HOST)
    else:
        taken = choose(options, HOST)
        assert chosen == [(taken.name, str(taken.address))]
