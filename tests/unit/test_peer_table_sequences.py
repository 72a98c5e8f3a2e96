"""The peer table by random sequences of events: only the registry's present state matters."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from hypothesis import given
from hypothesis import strategies as st

from flannel_udp.control.overlaps import PrefixSet
from flannel_udp.control.peers import PeerTable
from flannel_udp.model import Change, Delta, Entry, LeaseAttrs, Peer, Snapshot, Subnet
from tests.support.backends import read_udp_hop

NETWORK = IPv4Network("10.1.0.0/16")
OUR_IP = "192.0.2.1"
OWN = IPv4Network("10.1.15.0/24")

KEYS = [
    "10.1.16.0-24",
    "10.1.16.0-24&fd00:0:0:1::-64",
    "10.1.17.0-24",
    "10.1.16.0-20",
    "10.1.16.128-25",
    "10.1.0.0-17",
    "10.1.15.0-24",
    "10.1.15.0-25",
    "10.1.0.0-16",
    "10.2.0.0-24",
    "0.0.0.0-0",
    "bad",
]
VALUES = [
    b'{"PublicIP":"192.0.2.1"}',
    b'{"PublicIP":"192.0.2.2"}',
    b'{"PublicIP":"192.0.2.3"}',
    b'{"PublicIP":"192.0.2.3","BackendType":"vxlan"}',
    b'{"PublicIP":"0.0.0.0"}',
    b"bad",
]
STATES = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES))
OWNS = st.sampled_from([None, Subnet(OWN), Subnet(IPv4Network("10.1.16.0/24"))])
STEPS = st.lists(
    st.tuples(st.just("change"), st.dictionaries(st.sampled_from(KEYS), st.none() | st.sampled_from(VALUES)))
    | st.tuples(st.just("snapshot"), STATES)
    | st.tuples(st.just("own"), OWNS),
    max_size=12,
)


def entries(state: dict[str, bytes]) -> dict[str, Entry]:
    return {key: Entry(key, value, 1) for key, value in state.items()}


@given(STEPS)
def test_any_sequence_of_events_gives_the_same_peers_as_one_snapshot_of_the_end(
    steps: list[tuple[str, object]],
) -> None:
    table = PeerTable((NETWORK,), LeaseAttrs(IPv4Address(OUR_IP)), read_udp_hop)
    state: dict[str, bytes] = {}
    own: Subnet | None = None
    told: set[Peer] = set()  # what somebody who only gets the deltas knows
    for kind, what in steps:
        before = {item.subnet: item for item in table.peers()}
        if kind == "own":
            assert what is None or isinstance(what, Subnet)
            own = what
            delta = table.set_own(own)
        elif kind == "snapshot":
            assert isinstance(what, dict)
            state = what
            delta = table.apply(Snapshot(entries(state), 1))
        else:
            assert isinstance(what, dict)
            state = {key: value for key, value in {**state, **what}.items() if value is not None}
            delta = table.apply(Change({key: value and Entry(key, value, 1) for key, value in what.items()}, 1))
        told -= set(delta.removed)
        told -= {before[item.subnet] for item in delta.changed}
        told |= set(delta.added) | set(delta.changed)
        assert told == set(table.peers())
    fresh = PeerTable((NETWORK,), LeaseAttrs(IPv4Address(OUR_IP)), read_udp_hop)
    fresh.set_own(own)
    fresh.apply(Snapshot(entries(state), 1))
    assert set(table.peers()) == set(fresh.peers())
    assert {key: table.entry(key) for key in KEYS} == {key: fresh.entry(key) for key in KEYS}


@given(STATES, STATES)
def test_the_same_snapshot_again_says_and_changes_nothing(first: dict[str, bytes], second: dict[str, bytes]) -> None:
    table = PeerTable((NETWORK,), LeaseAttrs(IPv4Address(OUR_IP)), read_udp_hop)
    table.set_own(Subnet(OWN))
    table.apply(Snapshot(entries(first), 1))
    table.apply(Snapshot(entries(second), 2))
    assert table.apply(Snapshot(entries(second), 3)) == Delta()


PREFIXES = st.builds(
    lambda address, length: IPv4Network((address >> (32 - length) << (32 - length), length)),
    st.integers(0, 255).map(lambda byte: byte << 20),
    st.integers(3, 12),
)


@given(st.lists(st.tuples(st.booleans(), PREFIXES), max_size=30))
def test_the_prefix_set_finds_overlaps_like_a_comparison_with_every_member(
    steps: list[tuple[bool, IPv4Network]],
) -> None:
    prefixes = PrefixSet(4)
    members: set[IPv4Network] = set()
    for add, prefix in steps:
        if add and prefix not in members:
            prefixes.add(prefix)
            members.add(prefix)
        elif not add and prefix in members:
            prefixes.remove(prefix)
            members.remove(prefix)
        for member in members:
            assert member in prefixes
            around = [other for other in members if other != member and member.subnet_of(other)]
            assert prefixes.around(member) == max(around, key=lambda other: other.prefixlen, default=None)
            assert prefixes.inside(member) == sum(other != member and other.subnet_of(member) for other in members)
