"""The peer table where IPv6 is on: each family a world of its own, and a poisoned part costs nothing but itself."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_udp.control.overlaps import PrefixSet
from flannel_udp.control.peers import PeerTable, SharedSubnet
from flannel_udp.model import Change, Delta, Entry, LeaseAttrs, Peer, Prefix, Snapshot, Subnet, lease_id_of

V4, V6 = IPv4Network("10.1.0.0/16"), IPv6Network("fd00:1::/48")
OURS = LeaseAttrs(IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1"))
OWN = Subnet(IPv4Network("10.1.15.0/24"), IPv6Network("fd00:1:0:15::/64"))
KEY = "10.1.16.0-24&fd00:1:0:16::-64"


def read_hop(attrs: LeaseAttrs, version: int) -> Any:
    """Be a backend of which every host has something to say by each family."""
    data = attrs.data_of(version)
    if data == "bad":
        raise ValueError("its backend data make no sense")
    return data


def new_table(*overlays: Prefix, own: Subnet | None = OWN) -> PeerTable:
    table = PeerTable(overlays or (V4, V6), OURS, read_hop)
    table.set_own(own)
    return table


def entry(
    key: str, public_ip: Any = "192.0.2.2", public_ipv6: Any = "2001:db8::2", mark: int = 7, **more: Any
) -> Entry:
    value = {"PublicIP": public_ip, "PublicIPv6": public_ipv6, **more}
    return Entry(key, json.dumps(value).encode(), 1, lease_id_of(mark, 1))


def snapshot(*entries: Entry) -> Snapshot:
    return Snapshot({item.key: item for item in entries}, 10)


def change(*entries: Entry, gone: tuple[str, ...] = ()) -> Change:
    return Change({**{item.key: item for item in entries}, **dict.fromkeys(gone)}, 11)


def peer(subnet: str, public_ip: str, hop: Any = None) -> Peer:
    return Peer(ip_network(subnet), ip_address(public_ip), hop)


PEER4, PEER6 = peer("10.1.16.0/24", "192.0.2.2"), peer("fd00:1:0:16::/64", "2001:db8::2")


def test_hosts_that_share_one_family_s_subnet_by_keys_of_their_own_are_known() -> None:
    table = new_table()
    alike = entry("10.1.16.0-24&fd00:1:0:17::-64", "192.0.2.3", "2001:db8::3")
    table.apply(snapshot(entry(KEY), alike))
    assert table.shared() == [SharedSubnet("10.1.16.0/24", ("192.0.2.2", "192.0.2.3"), ours=False)]
    table.apply(change(entry(alike.key, "192.0.2.2", "2001:db8::2")))  # the same host's, under another key
    assert table.shared() == []
    table.apply(change(alike))
    table.apply(change(gone=(KEY,)))
    assert table.shared() == []


def test_a_lease_of_both_families_is_two_peers_that_come_move_and_go_together() -> None:
    table = new_table()
    assert table.apply(snapshot(entry(KEY))) == Delta(added=(PEER4, PEER6))
    moved = entry(KEY, public_ipv6="2001:db8::3")
    assert table.apply(change(moved)) == Delta(changed=(peer("fd00:1:0:16::/64", "2001:db8::3"),))
    both = entry(KEY, "192.0.2.9", "2001:db8::9")
    assert len(table.apply(change(both)).changed) == 2
    assert len(table.apply(change(gone=(KEY,))).removed) == 2
    assert (table.count, table.peers()) == (0, ())


@pytest.mark.parametrize("own", [None, OWN], ids=["before a lease is held", "later"])
def test_our_own_entry_with_an_ipv6_address_that_we_had_before_is_neither_peer_nor_fault(own: Subnet | None) -> None:
    """It is found by its PublicIP; its VtepMAC is ours, too, which would be a fault of a peer's."""
    key = "10.1.15.0-24&fd00:1:0:15::-64"
    table = new_table(own=own)
    assert table.apply(snapshot(entry(key, "192.0.2.1", "2001:db8::99", BackendV6Data="bad"))) == Delta()
    now = LeaseAttrs(OURS.public_ip, IPv6Address("2001:db8::77"))
    assert table.set_public_ips(now) == Delta()
    assert table.apply(change(entry(key, "192.0.2.1", "2001:db8::77"))) == Delta()
    assert table.claims() == []


def test_each_part_goes_to_its_own_family_and_says_what_that_one_s_data_say() -> None:
    delta = new_table().apply(snapshot(entry(KEY, BackendData=4, BackendV6Data=6)))
    assert [(item.version, item.hop) for item in delta.added] == [(4, 4), (6, 6)]
    assert (delta.of(4).added, delta.of(6).added) == (delta.added[:1], delta.added[1:])


@pytest.mark.parametrize(
    ("key", "public_ip", "public_ipv6", "peers"),
    [
        ("10.1.16.0-24", "192.0.2.2", None, {PEER4}),
        ("0.0.0.0-0&fd00:1:0:16::-64", "0.0.0.0", "2001:db8::2", {PEER6}),
    ],
    ids=["IPv4", "IPv6"],
)
def test_a_host_with_one_family_is_a_peer_by_that_one_and_no_fault(
    key: str, public_ip: str, public_ipv6: str | None, peers: set[Peer]
) -> None:
    table = new_table()
    assert table.apply(snapshot(entry(key, public_ip, public_ipv6))).warnings == ()
    assert set(table.peers()) == peers


@pytest.mark.parametrize(
    ("bad", "left", "why"),
    [
        (entry(KEY, public_ipv6=None), PEER4, "IPv6 part is ignored: lease value has no PublicIPv6"),
        (entry(KEY, public_ipv6="bogus"), PEER4, "IPv6 part is ignored: lease value: PublicIPv6 'bogus' is no IPv6"),
        (entry(KEY, public_ipv6=7), PEER4, "IPv6 part is ignored: lease value: PublicIPv6 7 is no IPv6 address"),
        (entry(KEY, public_ipv6="fe80::2"), PEER4, "PublicIPv6 fe80::2 is link-local"),
        (entry(KEY, public_ipv6="ff02::1"), PEER4, "PublicIPv6 ff02::1 is no address of one host"),
        (entry(KEY, public_ipv6="::"), PEER4, "PublicIPv6 :: is no address of one host"),
        (entry(KEY, public_ipv6="::1"), PEER4, "PublicIPv6 ::1 is no address of one host"),
        (entry(KEY, public_ipv6="::192.0.2.2"), PEER4, "PublicIPv6 ::c000:202 is no address of one host"),
        (
            entry(KEY, public_ipv6="::ffff:192.0.2.2"),
            PEER4,
            f"PublicIPv6 {IPv6Address('::ffff:192.0.2.2')} is no address of one host",
        ),
        (entry(KEY, public_ipv6="fd00:1:0:99::7"), PEER4, "PublicIPv6 fd00:1:0:99::7 is in the overlay network"),
        (entry(KEY, public_ipv6="2001:db8::aa"), PEER4, "PublicIPv6 2001:db8::aa is an address of this host"),
        (entry(KEY, BackendV6Data="bad"), PEER4, "IPv6 part is ignored: its backend data make no sense"),
        (entry("10.1.16.0-24&fd00:2::-64"), PEER4, "fd00:2::/64 is outside the overlay network fd00:1::/48"),
        (entry("10.1.16.0-24&fd00:1::-48"), PEER4, "fd00:1::/48 is as wide as the overlay network"),
        (entry("10.1.16.0-24&fd00:1:0:16::1-64"), PEER4, "host bits are set, the subnet would be fd00:1:0:16::/64"),
        (entry("10.1.16.0-24&fd00:1:0:16::-0"), PEER4, "prefix length 0 is outside 1 to 128"),
        (entry(KEY, "0.0.0.0"), PEER6, "IPv4 part is ignored: PublicIP 0.0.0.0 is no address of one host"),
        (entry(KEY, "bogus"), PEER6, "IPv4 part is ignored: lease value: PublicIP 'bogus' is no IPv4 address"),
        (entry(KEY, "10.1.99.7"), PEER6, "PublicIP 10.1.99.7 is in the overlay network 10.1.0.0/16"),
        (entry(KEY, BackendData="bad"), PEER6, "IPv4 part is ignored: its backend data make no sense"),
        (entry("10.2.16.0-24&fd00:1:0:16::-64"), PEER6, "10.2.16.0/24 is outside the overlay network 10.1.0.0/16"),
        (entry("10.1.16.1-24&fd00:1:0:16::-64"), PEER6, "host bits are set, the subnet would be 10.1.16.0/24"),
    ],
    ids=lambda value: value.split(": ")[-1] if isinstance(value, str) else None,
)
def test_a_poisoned_part_costs_that_part_is_said_once_and_never_costs_the_other(
    bad: Entry, left: Peer, why: str
) -> None:
    table = new_table()
    table.set_own_addresses({IPv6Address("2001:db8::aa"): "is an address of this host"})
    other = entry("10.1.17.0-24&fd00:1:0:17::-64", "192.0.2.3", "2001:db8::3")
    delta = table.apply(snapshot(bad, other))
    assert {item for item in delta.added if item.public_ip not in map(ip_address, ("192.0.2.3", "2001:db8::3"))} == {
        left
    }
    assert table.count == 3
    (warning,) = delta.warnings
    assert warning.startswith(f"entry {bad.key!r}: its IPv{10 - left.version} part is ignored: ")
    assert why in warning
    assert table.apply(snapshot(bad, other)) == Delta()
    good = entry(KEY)
    whole = table.apply(snapshot(good, other))
    assert set(table.peers()) >= {PEER4, PEER6}
    assert left not in (*whole.removed, *whole.changed)


def test_an_entry_of_which_both_parts_are_poisoned_is_said_in_one_line() -> None:
    (warning,) = new_table().apply(snapshot(entry(KEY, BackendData="bad", BackendV6Data="bad"))).warnings
    assert warning == f"entry {KEY!r} is ignored: its backend data make no sense"
    (warning,) = new_table().apply(snapshot(entry("10.2.0.0-24&fd00:2::-64"))).warnings
    assert warning.count("is outside the overlay network") == 2


def test_of_a_key_with_both_parts_the_one_counts_whose_family_is_on() -> None:
    bad_v6 = entry(KEY, public_ipv6="bogus")
    assert new_table(V4).apply(snapshot(bad_v6)) == Delta(added=(PEER4,))
    bad_v4 = entry(KEY, public_ip="bogus")
    assert new_table(V6).apply(snapshot(bad_v4)) == Delta(added=(PEER6,))


@pytest.mark.parametrize(
    ("overlay", "key", "why"),
    [(V6, "10.1.16.0-24", "it has no IPv6 part"), (V4, "0.0.0.0-0&fd00:1:0:16::-64", "it has no IPv4 part")],
)
def test_an_entry_of_another_family_than_the_network_s_is_ignored_with_one_warning(
    overlay: Prefix, key: str, why: str
) -> None:
    table = new_table(overlay)
    assert table.apply(snapshot(entry(key))).warnings == (f"entry {key!r} is ignored: {why}",)
    assert table.apply(change(entry(key))) == Delta()


def test_without_ipv4_nobody_is_us_for_saying_0_0_0_0() -> None:
    table = PeerTable((V6,), LeaseAttrs(None, OURS.public_ipv6), read_hop)
    table.set_own(Subnet(None, OWN.v6))
    entries = [entry(f"0.0.0.0-0&fd00:1:0:{n}::-64", "0.0.0.0", f"2001:db8::{n}") for n in range(2, 6)]
    ours = entry("0.0.0.0-0&fd00:1:0:15::-64", "0.0.0.0", "2001:db8::1")
    delta = table.apply(snapshot(ours, *entries))
    assert (len(delta.added), delta.warnings, delta.ours) == (4, (), None)
    assert table.claims() == []


def test_our_own_part_of_each_family_is_no_peer() -> None:
    table = new_table()
    foreign = entry("10.1.15.0-24&fd00:1:0:16::-64")
    assert table.apply(snapshot(foreign)).added == (PEER6,)
    assert table.set_own(None).added == (peer("10.1.15.0/24", "192.0.2.2"),)
    assert len(table.set_own(OWN).removed) == 1


@pytest.mark.parametrize(
    ("key", "left", "bad"),
    [
        ("10.1.16.0-24&fd00:1:0:15::-64", PEER4, "IPv6 part is ignored: fd00:1:0:15::/64"),
        ("10.1.15.0-24&fd00:1:0:16::-64", PEER6, "IPv4 part is ignored: 10.1.15.0/24"),
    ],
)
def test_who_has_one_part_of_our_subnet_is_a_peer_by_the_other_one(key: str, left: Peer, bad: str) -> None:
    table = new_table()
    table.set_own(Subnet(IPv4Network("10.1.15.0/24"), IPv6Network("fd00:1:0:15::/64")))
    delta = table.apply(snapshot(entry(key)))
    assert delta.added == (left,)
    assert delta.warnings == (f"entry {key!r}: its {bad} is our own subnet",)
    assert table.apply(Change({key: None}, 8)).removed == (left,)
    ours = "10.1.15.0-24&fd00:1:0:15::-64"  # another host takes it: that is for the lease's keeper to say
    assert table.apply(Change({ours: entry(ours)}, 9)) == Delta()


def test_what_else_has_our_public_ipv6_is_ours_by_ipv6_only() -> None:
    table = new_table()
    theirs = entry(KEY, public_ipv6="2001:db8::1", mark=0)
    delta = table.apply(snapshot(theirs))
    assert (delta.added, delta.ours) == ((PEER4,), frozenset({PEER6.subnet}))
    assert (delta.of(4).ours, delta.of(6).ours) == (frozenset(), frozenset({PEER6.subnet}))
    (warning,) = delta.warnings
    assert "it has our public IP, but our subnet is fd00:1:0:15::/64" in warning
    assert table.claims() == []
    claim = entry("10.1.17.0-24&fd00:1:0:17::-64", "192.0.2.3", "2001:db8::1")
    table.apply(change(claim))
    assert table.claims() == [claim]


def test_a_node_is_a_claim_by_the_family_whose_address_is_ours_and_our_own_node_by_none() -> None:
    table = new_table(own=None)
    table.set_own(OWN, "h1")
    own = replace(entry("10.1.15.0-24&fd00:1:0:15::-64", "192.0.2.1", "2001:db8::1", mark=0), host="h1")
    stale = replace(entry(KEY, public_ipv6="2001:db8::1", mark=0), host="stale")
    delta = table.apply(snapshot(own, stale))
    assert (delta.added, delta.warnings, table.claims()) == ((PEER4,), (), [stale])
    table.set_own(Subnet(OWN.v4), "h1")  # without a part of IPv6 that could be told apart
    assert table.claims() == []


def test_an_address_of_ours_that_changes_concerns_its_family_only() -> None:
    table = new_table()
    table.apply(snapshot(entry(KEY, "192.0.2.2", "2001:db8::2")))
    delta = table.set_public_ips(LeaseAttrs(OURS.public_ip, IPv6Address("2001:db8::2")))
    assert (delta.removed, delta.added, delta.changed) == ((PEER6,), (), ())
    assert table.set_public_ips(OURS).added == (PEER6,)
    assert table.set_public_ips(LeaseAttrs(OURS.public_ip)) == Delta()  # not dialled by IPv6 any more


def test_overlaps_are_found_within_a_family() -> None:
    table = new_table()
    wide = entry("10.1.32.0-24&fd00:1:0:20::-60", "192.0.2.3", "2001:db8::3")
    narrow = entry("10.1.33.0-24&fd00:1:0:21::-64")
    assert table.apply(snapshot(wide, narrow)).warnings == (
        "fd00:1:0:20::/60 of 2001:db8::3 overlaps fd00:1:0:21::/64 of 2001:db8::2: the longer prefix wins",
    )


# --- Properties ---------------------------------------------------------------------------------------------------

KEYS = [
    "10.1.16.0-24",
    "10.1.16.0-24&fd00:1:0:16::-64",
    "10.1.17.0-24&fd00:1:0:16::-64",
    "0.0.0.0-0&fd00:1:0:16::-64",
    "0.0.0.0-0&fd00:1:0:17::-64",
    "10.1.16.0-20&fd00:1:0:10::-60",
    "10.1.15.0-24&fd00:1:0:15::-64",
    "10.1.16.0-24&fd00:1:0:16::1-64",
    "10.2.0.0-24&fd00:1:0:18::-64",
    "10.1.18.0-24&fd00:2::-64",
    "bad",
]
VALUES = [
    b'{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1"}',
    b'{"PublicIP":"192.0.2.2","PublicIPv6":"2001:db8::1"}',
    b'{"PublicIP":"192.0.2.2","PublicIPv6":"2001:db8::2"}',
    b'{"PublicIP":"192.0.2.2","PublicIPv6":null}',
    b'{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::3"}',
    b'{"PublicIP":"192.0.2.3","PublicIPv6":"fe80::1"}',
    b'{"PublicIP":"192.0.2.3","PublicIPv6":"2001:db8::3","BackendV6Data":"bad"}',
    b"bad",
]
STATES = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES))
STEPS = st.lists(
    st.tuples(st.just("change"), st.dictionaries(st.sampled_from(KEYS), st.none() | st.sampled_from(VALUES)))
    | st.tuples(st.just("snapshot"), STATES)
    | st.tuples(st.just("own"), st.sampled_from([None, OWN, Subnet(OWN.v4), Subnet(None, OWN.v6)])),
    max_size=12,
)


def entries(state: dict[str, bytes]) -> dict[str, Entry]:
    return {key: Entry(key, value, 1, 7 << 31) for key, value in state.items()}


@given(STEPS, st.sampled_from([(V4,), (V6,), (V4, V6)]))
def test_any_sequence_of_events_gives_what_one_snapshot_of_the_end_does(
    steps: list[tuple[str, Any]], overlays: tuple[Prefix, ...]
) -> None:
    table, own, state = new_table(*overlays, own=None), None, dict[str, bytes]()
    told: dict[Prefix, Peer] = {}  # what somebody who only gets the deltas knows
    for kind, what in steps:
        if kind == "own":
            own, delta = what, table.set_own(what)
        elif kind == "snapshot":
            state, delta = what, table.apply(Snapshot(entries(what), 1))
        else:
            state = {key: value for key, value in {**state, **what}.items() if value is not None}
            delta = table.apply(Change({key: value and entries({key: value})[key] for key, value in what.items()}, 1))
        for item in delta.removed:
            del told[item.subnet]
        told |= {item.subnet: item for item in (*delta.added, *delta.changed)}
        assert set(told.values()) == set(table.peers())
    fresh = new_table(*overlays, own=own)
    fresh.apply(Snapshot(entries(state), 1))
    assert set(table.peers()) == set(fresh.peers())
    assert (table.ours(), table.claims()) == (fresh.ours(), fresh.claims())


@given(STATES)
def test_each_family_s_peers_are_those_of_a_table_that_has_this_family_alone(state: dict[str, bytes]) -> None:
    both = new_table()
    both.apply(Snapshot(entries(state), 1))
    for overlay in (V4, V6):
        alone = new_table(overlay)
        alone.apply(Snapshot(entries(state), 1))
        assert {item for item in both.peers() if item.version == overlay.version} == set(alone.peers())


PREFIXES = st.builds(
    lambda n, length: IPv6Network(((0xFD << 120) + (n << 60) >> 128 - length << 128 - length, length)),
    st.integers(0, 255),
    st.integers(58, 68),
)


@given(st.lists(PREFIXES, max_size=20, unique=True))
def test_the_prefix_set_finds_overlaps_of_ipv6_like_a_comparison_with_every_member(members: list[IPv6Network]) -> None:
    prefixes = PrefixSet(6)
    for prefix in members:
        prefixes.add(prefix)
    for member in members:
        around = [other for other in members if other != member and member.subnet_of(other)]
        assert prefixes.around(member) == max(around, key=lambda other: other.prefixlen, default=None)
        assert prefixes.inside(member) == sum(other != member and other.subnet_of(member) for other in members)


def test_an_entry_that_moves_to_a_key_with_both_parts_adds_one_and_leaves_the_other_alone() -> None:
    table = new_table()
    alone = "10.1.16.0-24"
    assert table.apply(snapshot(entry(alone, public_ipv6=None))) == Delta(added=(PEER4,))
    assert table.apply(change(entry(KEY), gone=(alone,))) == Delta(added=(PEER6,))
