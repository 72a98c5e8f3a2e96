"""A route table that is brought up to date equals one that is built from nothing, and the twin; nothing leaks."""

from __future__ import annotations

import os
import random
import resource
from array import array
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flannel_udp._fastpath.routes import NO_ROUTE, PEERS_FROM, RouteList, RouteTable
from flannel_udp.dataplane.reference import ReferenceTable
from tests.support.engine_rig import EngineRig, small_table

CROWD = {IPv4Network((0x0A400000 + (i << 8), 24)): PEERS_FROM for i in (*range(5_000), 0x3FFF)}
"""Routes at both ends of 10.64.0.0/10 that nobody touches: only a large table has room for patches."""
N_PEERS = 6
HOPS = range(PEERS_FROM, PEERS_FROM + N_PEERS)

# The root's entries are /24: what is wider covers many of them, what is longer lies below one.
touched_prefixes = st.builds(
    lambda address, length: IPv4Network((0x0A700000 | address, length), strict=False),
    st.one_of(st.integers(0, 0xFFFF), st.sampled_from([0, 0x100, 0xFFFF])),
    st.one_of(st.integers(13, 32), st.sampled_from([16, 24, 26])),
)
batches = st.lists(st.dictionaries(touched_prefixes, st.sampled_from([NO_ROUTE, *HOPS]), max_size=8), max_size=8)
addresses = st.lists(
    st.lists(st.integers(1, 12), min_size=N_PEERS, max_size=N_PEERS, unique=True), min_size=1, max_size=4
)


def columns(prefixes: Iterable[IPv4Network]) -> tuple[array[int], array[int]]:
    prefixes = list(prefixes)
    networks = array("I", [int(prefix.network_address) for prefix in prefixes])
    return networks, array("B", [prefix.prefixlen for prefix in prefixes])


def route_list(routes: Mapping[IPv4Network, int]) -> RouteList:
    return RouteList(*columns(routes), array("I", routes.values()))


def edges(prefixes: Iterable[IPv4Network]) -> list[int]:
    """Return the addresses at which a look-up may change its answer."""
    return [
        int(edge) + step
        for prefix in prefixes
        for edge in (prefix.network_address, prefix.broadcast_address)
        for step in (-1, 0, 1)
    ]


class Kept:
    """Routes and a table that is brought up to date whenever they change."""

    def __init__(self, routes: Mapping[IPv4Network, int], peer_addresses: list[int]) -> None:
        self.routes = dict(routes)
        self.list = route_list(routes)
        self.peer_addresses = array("I", [0] * PEERS_FROM + peer_addresses)
        self.table = RouteTable(self.list, self.peer_addresses)

    def change(self, changes: Mapping[IPv4Network, int], peers: Mapping[int, int] | None = None) -> bool:
        """Change next hops of prefixes and addresses of next hops; return whether the trie was only patched."""
        for prefix, hop in changes.items():
            self.routes.pop(prefix, None)
            if hop != NO_ROUTE:
                self.routes[prefix] = hop
        for hop, address in (peers or {}).items():
            self.peer_addresses[hop] = address
        self.list.change(*columns(changes), array("I", changes.values()))
        return self.table.update(self.list, self.peer_addresses, *columns(changes), array("I", peers or {}))

    def anew(self) -> RouteTable:
        """Return the table that is built of the present routes."""
        return RouteTable(route_list(self.routes), self.peer_addresses)


@given(batches)
@settings(deadline=None)
def test_any_changes_give_the_table_that_is_built_from_nothing_and_the_twins(
    sequence: list[dict[IPv4Network, int]],
) -> None:
    kept = Kept(CROWD, list(range(1, N_PEERS + 1)))
    seen: set[IPv4Network] = set()
    patched = 0
    for changes in sequence:
        patched += kept.change(changes)
        seen |= changes.keys()
        anew = kept.anew()
        # Of the crowd nothing is near: the twin, which looks at every prefix, does without it.
        near: dict[IPv4Network, IPv4Address | str] = {
            prefix: IPv4Address(hop) for prefix, hop in kept.routes.items() if prefix not in CROWD
        }
        twin = ReferenceTable(near)
        for address in edges(seen):
            hop = kept.table.lookup(address)
            assert hop == anew.lookup(address)
            if 0x0A700000 <= address < 0x0A780000:
                assert (IPv4Address(hop) if hop else None) == twin.lookup(IPv4Address(address))
        assert len(kept.list) == len(kept.routes)
    assert all(kept.table.lookup(int(prefix[9])) == hop for prefix, hop in CROWD.items())
    assert patched == len(sequence)


@given(addresses)
def test_any_peers_are_found_by_their_addresses_of_the_end(states: list[list[int]]) -> None:
    # One hop more a state: the addresses' hash grows, and what changes hands within a step is found all the same.
    kept = Kept({}, [])
    for number, state in enumerate(states):
        kept.peer_addresses.extend([0] * 3)
        hops = list(range(PEERS_FROM, PEERS_FROM + 3 * (number + 1)))
        wanted = dict(zip(hops, [address << 7 for address in state], strict=False))
        kept.change({}, dict.fromkeys(hops, 0) | wanted)
        for address in range(13):
            holders = [hop for hop, held in wanted.items() if held == address << 7 and held]
            assert kept.table.peer_of(address << 7) == (holders[0] if holders else NO_ROUTE)
        assert [kept.table.peer_address(hop) for hop in hops] == [wanted.get(hop, 0) for hop in hops]


def test_what_has_moved_to_another_index_is_found_whichever_is_told_first() -> None:
    for order in ([2, 3], [3, 2]):
        kept = Kept({}, [77, 0])
        kept.change({}, {hop: {2: 0, 3: 77}[hop] for hop in order})
        assert kept.table.peer_of(77) == 3


def test_a_hundred_thousand_changes_cost_no_memory() -> None:
    kept = Kept(CROWD, list(range(1, N_PEERS + 1)))
    chooser = random.Random(20261122)
    pool = [IPv4Network((0x0A700000 + (i << 4), 28)) for i in range(4_096)]
    patched = 0

    def churn(n_batches: int) -> int:
        return sum(
            kept.change({chooser.choice(pool): chooser.choice([NO_ROUTE, *HOPS]) for _ in range(50)})
            for _ in range(n_batches)
        )

    patched += churn(400)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    patched += churn(1_600)
    if "asan" not in os.environ.get(
        "LD_PRELOAD", ""
    ):  # which keeps what is freed for a while, to see who still uses it
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 4_096
    assert 1_900 < patched < 2_000  # waste was collected, and seldom
    anew = kept.anew()
    assert kept.table.memory_bytes <= 1.5 * anew.memory_bytes
    assert all(kept.table.lookup(int(prefix[1])) == anew.lookup(int(prefix[1])) for prefix in pool)


def test_a_table_that_shrinks_gives_its_memory_back() -> None:
    kept = Kept(CROWD, [1])
    kept.change(dict.fromkeys(list(CROWD)[10:], NO_ROUTE))
    assert kept.table.memory_bytes <= kept.anew().memory_bytes
    assert len(kept.list) == 10


def test_a_table_that_an_engine_has_is_not_written() -> None:
    with EngineRig(small_table()) as rig:
        kept = Kept(CROWD, [1])
        rig.engine.publish(kept.table)
        with pytest.raises(ValueError, match="an engine has"):
            kept.change({})
        rig.engine.publish(kept.anew())
        assert rig.engine.reclaim() == 0
        kept.change({})


@pytest.mark.parametrize(
    ("routes", "peer_addresses", "hops", "message"),
    [
        ({IPv4Network("10.1.0.0/24"): 4}, [0, 0, 1, 2], [], "next hop without an address"),
        ({}, [0, 0], [], "next hop without an address"),
        ({}, [0, 0, 1, 2], [1], "is no peer"),
        ({}, [0, 0, 1, 2], [4], "is no peer"),
    ],
)
def test_what_is_no_table_is_refused(
    routes: dict[IPv4Network, int], peer_addresses: list[int], hops: list[int], message: str
) -> None:
    kept = Kept({}, [1, 2])
    with pytest.raises(ValueError, match=message):
        kept.table.update(route_list(routes), array("I", peer_addresses), *columns(routes), array("I", hops))


def test_a_refused_change_leaves_the_list_as_it_was() -> None:
    kept = Kept(CROWD, [1])
    for networks, lengths in (([0x0A010001], [24]), ([0x0A010000], [33]), ([0x0A010000] * 2, [24, 24])):
        with pytest.raises(ValueError, match=r"host bits|twice"):
            kept.list.change(array("I", networks), array("B", lengths), array("I", [2] * len(networks)))
        assert len(kept.list) == len(CROWD)
