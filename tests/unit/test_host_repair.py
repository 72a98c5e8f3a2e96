"""What is wrong with flannel0, what became of the external interface, and how soon to act: no kernel is asked."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_udp.backend.tunnel import REPAIRS
from flannel_udp.host.repair import (
    BURST,
    LONGEST_PAUSE_S,
    WINDOW_S,
    Fault,
    LinkState,
    Pace,
    TunnelEnd,
    TunnelShape,
    differences,
    why_lost,
)
from flannel_udp.model import Ends, Interface

END = TunnelEnd(IPv4Address("10.1.15.0"), IPv4Network("10.1.0.0/16"))
END6 = TunnelEnd(IPv6Address("fd00:1:15::"), IPv6Network("fd00:1::/32"))
WANTED = TunnelShape((END,), 1472)
RIGHT = LinkState("flannel0", 7, 1472, True, (IPv4Interface("10.1.15.0/32"),))
ETH0 = LinkState("eth0", 2, 1500, True, (IPv4Interface("192.0.2.1/24"), IPv4Interface("192.0.2.9/24")))
EXTERNAL = Interface("eth0", 2, 1500, Ends(IPv4Address("192.0.2.1"), IPv4Address("203.0.113.1")))


def test_a_right_device_needs_nothing_whatever_else_is_on_it() -> None:
    assert differences(WANTED, RIGHT, routed={END.network}) == []
    more = replace(RIGHT, addresses=(IPv4Interface("198.51.100.1/24"), *RIGHT.addresses), name="renamed")
    assert differences(WANTED, more, routed={END.network}) == []


@pytest.mark.parametrize(
    ("link", "routed", "needed"),
    [
        (replace(RIGHT, up=False), False, ["link", "route"]),
        (replace(RIGHT, addresses=()), False, ["address", "route"]),
        (replace(RIGHT, addresses=(IPv4Interface("10.1.15.0/24"),)), True, ["address"]),
        (replace(RIGHT, addresses=(IPv4Interface("10.1.15.1/32"),)), True, ["address"]),
        (replace(RIGHT, carrier=False), True, ["link"]),
        (replace(RIGHT, makes_ipv6_addresses=True), True, ["ipv6"]),
        (replace(RIGHT, mtu=1500), True, ["mtu"]),
        (RIGHT, False, ["route"]),
        (LinkState("flannel0", 7, 1500, False, ()), False, ["mtu", "address", "link", "route"]),
    ],
)
def test_each_difference_is_named_in_the_order_of_its_repair(link: LinkState, routed: bool, needed: list[str]) -> None:
    assert [fault.what for fault in differences(WANTED, link, {END.network} if routed else set())] == needed
    assert set(needed) <= set(REPAIRS)


def test_what_one_family_lacks_is_told_apart_from_what_the_other_one_lacks() -> None:
    both = TunnelShape((END, END6), 1452)
    link = LinkState("flannel0", 7, 1452, True, (IPv4Interface("10.1.15.0/32"), IPv6Interface("fd00:1:15::/64")))
    assert differences(both, link, {END6.network}) == [Fault("address", END6), Fault("route", END)]
    right = replace(link, addresses=(*link.addresses, IPv6Interface("fd00:1:15::/128")))
    assert differences(both, right, {END.network, END6.network}) == []


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (ETH0, None),
        (replace(ETH0, mtu=9000, addresses=ETH0.addresses[:1]), None),
        (None, "interface eth0 is gone"),
        (replace(ETH0, name="wan"), None),
        (replace(ETH0, up=False), "interface eth0 is down"),
        (replace(ETH0, addresses=ETH0.addresses[1:]), "interface eth0 has lost its address 192.0.2.1"),
    ],
)
def test_an_external_interface_is_lost_only_with_its_link_or_its_address(
    found: LinkState | None, why: str | None
) -> None:
    assert why_lost(EXTERNAL, found, frozenset()) == ({} if why is None else {4: why})


def test_an_address_that_was_on_another_interface_from_the_start_may_stay_there() -> None:
    bare = replace(ETH0, addresses=())
    elsewhere = frozenset({EXTERNAL.address})
    assert why_lost(EXTERNAL, bare, elsewhere) == {}
    assert why_lost(EXTERNAL, replace(bare, up=False), elsewhere) == {4: "interface eth0 is down"}


def test_each_family_loses_its_own_address() -> None:
    both = replace(EXTERNAL, v6=Ends(IPv6Address("2001:db8::1"), IPv6Address("2001:db8::1")))
    assert why_lost(both, ETH0, frozenset()) == {6: "interface eth0 has lost its address 2001:db8::1"}
    whole = replace(ETH0, addresses=(IPv6Interface("2001:db8::1/64"), *ETH0.addresses))
    assert why_lost(both, whole, frozenset()) == {}
    assert why_lost(both, None, frozenset()) == dict.fromkeys((4, 6), "interface eth0 is gone")


def test_repairs_are_made_at_once_until_there_are_many_and_then_ever_rarer() -> None:
    pace, now_s, began = Pace(), 1000.0, []
    for _ in range(BURST - 1):
        assert pace.pause_s(now_s) == 0
        began.append(pace.note(now_s))
    pauses = []
    for _ in range(7):
        now_s += pace.pause_s(now_s)
        began.append(pace.note(now_s))
        pauses.append(pace.pause_s(now_s))
    assert pauses == [1, 2, 4, 8, 16, LONGEST_PAUSE_S, LONGEST_PAUSE_S]
    assert began == [False] * (BURST - 1) + [True] + [False] * 6
    now_s += WINDOW_S
    assert pace.pause_s(now_s) == 0
    assert not pace.note(now_s)


@given(st.lists(st.floats(min_value=0, max_value=WINDOW_S), max_size=200))
def test_never_more_than_a_few_repairs_in_a_window_and_one_warning_in_a_fight(gaps_s: list[float]) -> None:
    """However fast somebody undoes them: each waits for its pause."""
    pace, now_s, made, warned = Pace(), 0.0, [], []
    for gap_s in gaps_s:
        now_s += max(gap_s, pace.pause_s(now_s))
        made.append(now_s)
        if pace.note(now_s):
            warned.append(now_s)
    most = BURST + 5 + WINDOW_S / LONGEST_PAUSE_S + 1
    assert all(sum(at_s - WINDOW_S < other_s <= at_s for other_s in made) <= most for at_s in made)
    # Between two warnings there was a time without any repair.
    for former_s, next_s in pairwise(warned):
        between = [at_s for at_s in made if former_s <= at_s <= next_s]
        assert max(b - a for a, b in pairwise(between)) >= WINDOW_S
