"""A route table that is brought up to date equals one that is built from nothing, and a slow search; nothing leaks."""

from __future__ import annotations

import os
import random
import resource
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_udp._fastpath.routes import NO_ROUTE, PEERS_FROM, RouteList, RouteTable
from flannel_udp._fastpath.routes6 import RouteList6, RouteTable6
from tests.support.effort import share_of
from tests.support.engine_rig import EngineRig, small_table

Prefix = tuple[int, int]
"""Network address and length: thousands are looked at in every example, which `ipaddress` would make slow."""
N_PEERS = 6
HOPS = range(PEERS_FROM, PEERS_FROM + N_PEERS)
OVERLAY6 = int(IPv6Address("fd00:10:244::"))


@dataclass(frozen=True)
class Case:
    """A family, with routes that nobody touches: only a large table has room for patches."""

    name: str
    version: int
    crowd: Mapping[Prefix, int]
    lowest: int
    """Where the touched prefixes begin; the crowd is elsewhere, see `near`."""
    touched: st.SearchStrategy[Prefix]

    def __str__(self) -> str:
        return self.name

    @property
    def bits(self) -> int:
        return 32 if self.version == 4 else 128

    def subnet(self, number: int, prefix_len: int) -> Prefix:
        """Return a prefix of this length, which is at least 28: one of 4,096 that nobody has, where others touch."""
        return self.lowest + (number << (self.bits - prefix_len)), prefix_len

    def addresses(self, addresses: Iterable[int]) -> Any:
        """Return them as a column."""
        if self.version == 4:
            return array("I", addresses)
        return b"".join([address.to_bytes(16, "big") for address in addresses])

    def columns(self, prefixes: Iterable[Prefix]) -> tuple[Any, array[int]]:
        prefixes = list(prefixes)
        networks = self.addresses([network for network, _ in prefixes])
        return networks, array("B", [length for _, length in prefixes])

    def route_list(self, routes: Mapping[Prefix, int]) -> Any:
        made = RouteList if self.version == 4 else RouteList6
        return made(*self.columns(routes), array("I", routes.values()))

    def table(self, routes: Any, peer_addresses: Iterable[int]) -> Any:
        made: Any = RouteTable if self.version == 4 else RouteTable6
        return made(routes, self.addresses(peer_addresses))

    def is_near(self, address: int) -> bool:
        return 0 <= address - self.lowest < (1 << 19 if self.version == 4 else 1 << 76)


def prefix(address: int, length: int, bits: int) -> Prefix:
    """Return the prefix of this length that the address is in."""
    host_bits = bits - length
    return address >> host_bits << host_bits, length


def crowd6(*subnets: int) -> dict[Prefix, int]:
    return {(OVERLAY6 + (n << 64), 64): PEERS_FROM for n in (*range(5_000), *subnets)}


def touched6(lowest: int) -> st.SearchStrategy[Prefix]:
    """Return prefixes that differ in few bits, and those anywhere: in one word of the address and in the other."""
    offset = st.builds(lambda n, shift: n << shift, st.integers(0, 15), st.sampled_from([0, 40, 60, 64, 68, 72]))
    length = st.one_of(st.integers(53, 128), st.sampled_from([56, 64, 65, 128]))
    return st.builds(lambda at, bits: prefix(lowest | at, bits, 128), offset, length)


CASES = [
    # The root's entries are /24: what is wider covers many of them, what is longer lies below one.
    Case(
        "IPv4",
        4,
        {(0x0A400000 + (i << 8), 24): PEERS_FROM for i in (*range(5_000), 0x3FFF)},
        0x0A700000,
        st.builds(
            lambda address, length: prefix(0x0A700000 | address, length, 32),
            st.one_of(st.integers(0, 0xFFFF), st.sampled_from([0, 0x100, 0xFFFF])),
            st.one_of(st.integers(13, 32), st.sampled_from([16, 24, 26])),
        ),
    ),
    Case("IPv6", 6, crowd6(0xFFFF), OVERLAY6 + (0x2000 << 64), touched6(OVERLAY6 + (0x2000 << 64))),
    # One route far from the others: most lie below one entry of the root, and the node there is patched.
    Case("IPv6, one far", 6, crowd6(0x17FF, 1 << 30), OVERLAY6 + (0x1800 << 64), touched6(OVERLAY6 + (0x1800 << 64))),
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)
CASE4, CASE6 = CASES[0], CASES[1]
addresses = st.lists(
    st.lists(st.integers(1, 12), min_size=N_PEERS, max_size=N_PEERS, unique=True), min_size=1, max_size=4
)


def longest(routes: Mapping[Prefix, int], address: int, bits: int) -> int:
    """Return what a look-up has to find: slow, and plain to see."""
    found, longest_len = NO_ROUTE, -1
    for (network, length), hop in routes.items():
        if length > longest_len and (address ^ network) >> (bits - length) == 0:
            found, longest_len = hop, length
    return found


def edges(prefixes: Iterable[Prefix], bits: int) -> list[int]:
    """Return the addresses at which a look-up may change its answer."""
    return [
        edge + step
        for network, length in prefixes
        for edge in (network, network + (1 << (bits - length)) - 1)
        for step in (-1, 0, 1)
    ]


class Kept:
    """Routes and a table that is brought up to date whenever they change."""

    def __init__(self, case: Case, routes: Mapping[Prefix, int], peer_addresses: Iterable[int]) -> None:
        self.case = case
        self.routes = dict(routes)
        self.list = case.route_list(routes)
        self.peer_addresses = [0] * PEERS_FROM + [*peer_addresses]
        self.table = case.table(self.list, self.peer_addresses)

    def change(self, changes: Mapping[Prefix, int], peers: Mapping[int, int] | None = None) -> bool:
        """Change next hops of prefixes and addresses of next hops; return whether the trie was only patched."""
        for prefix, hop in changes.items():
            self.routes.pop(prefix, None)
            if hop != NO_ROUTE:
                self.routes[prefix] = hop
        for hop, address in (peers or {}).items():
            self.peer_addresses[hop] = address
        columns = self.case.columns(changes)
        self.list.change(*columns, array("I", changes.values()))
        patched: bool = self.table.update(
            self.list, self.case.addresses(self.peer_addresses), *columns, array("I", peers or {})
        )
        return patched

    def anew(self) -> Any:
        """Return the table that is built of the present routes."""
        return self.case.table(self.case.route_list(self.routes), self.peer_addresses)


@every_case
@given(data=st.data())
def test_any_changes_give_the_table_that_is_built_from_nothing_and_what_a_slow_search_finds(
    case: Case, data: st.DataObject
) -> None:
    changes_of_one = st.dictionaries(case.touched, st.sampled_from([NO_ROUTE, *HOPS]), max_size=8)
    kept = Kept(case, case.crowd, range(1, N_PEERS + 1))
    seen: set[Prefix] = set()
    for changes in data.draw(st.lists(changes_of_one, max_size=8)):
        assert kept.change(changes)  # patched
        seen |= changes.keys()
        anew = kept.anew()
        # Of the crowd nothing is near: the search, which looks at every prefix, does without it.
        near = {prefix: hop for prefix, hop in kept.routes.items() if prefix not in case.crowd}
        for address in edges(seen, case.bits):
            hop = kept.table.lookup(address)
            assert hop == anew.lookup(address)
            if case.is_near(address):
                assert hop == longest(near, address, case.bits)
        assert len(kept.list) == len(kept.routes)
    assert all(kept.table.lookup(network + 9) == hop for (network, _), hop in case.crowd.items())


anywhere6 = st.builds(
    lambda n, shift, length: prefix(n << shift, length, 128),
    st.integers(0, 7),
    st.sampled_from([0, 1, 30, 62, 63, 64, 100, 125]),
    st.one_of(st.integers(0, 128), st.sampled_from([0, 1, 63, 64, 65, 127, 128])),
)


@given(st.lists(st.dictionaries(anywhere6, st.sampled_from([NO_ROUTE, *HOPS]), max_size=12), max_size=4))
def test_any_few_ipv6_routes_anywhere_give_what_a_slow_search_finds(sequence: list[dict[Prefix, int]]) -> None:
    kept = Kept(CASE6, {}, range(1, N_PEERS + 1))
    seen: set[Prefix] = set()
    for changes in sequence:
        kept.change(changes)
        seen |= changes.keys()
        for address in (0, (1 << 128) - 1, 1 << 127, *edges(seen, 128)):
            if 0 <= address < 1 << 128:
                assert kept.table.lookup(address) == longest(kept.routes, address, 128)


@pytest.mark.parametrize("shift", [7, 0, 60, 120], ids="bit {}".format)
@given(states=addresses)
def test_any_peers_are_found_by_their_addresses_of_the_end(shift: int, states: list[list[int]]) -> None:
    # One hop more a state: the addresses' hash grows, and what changes hands within a step is found all the same.
    kept = Kept(CASE4 if shift == 7 else CASE6, {}, [])
    for number, state in enumerate(states):
        kept.peer_addresses.extend([0] * 3)
        hops = list(range(PEERS_FROM, PEERS_FROM + 3 * (number + 1)))
        wanted = dict(zip(hops, [address << shift for address in state], strict=False))
        kept.change({}, dict.fromkeys(hops, 0) | wanted)
        for address in range(13):
            holders = [hop for hop, held in wanted.items() if held == address << shift and held]
            assert kept.table.peer_of(address << shift) == (holders[0] if holders else NO_ROUTE)
        assert [kept.table.peer_address(hop) for hop in hops] == [wanted.get(hop, 0) for hop in hops]


@every_case
def test_what_has_moved_to_another_index_is_found_whichever_is_told_first(case: Case) -> None:
    for order in ([2, 3], [3, 2]):
        kept = Kept(case, {}, [77, 0])
        kept.change({}, {hop: {2: 0, 3: 77}[hop] for hop in order})
        assert kept.table.peer_of(77) == 3


@every_case
def test_a_hundred_thousand_changes_cost_no_memory(case: Case) -> None:
    kept = Kept(case, case.crowd, range(1, N_PEERS + 1))
    chooser = random.Random(20261122)
    pool = [case.subnet(number, 28 if case.version == 4 else 68) for number in range(4_096)]
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
    assert 1_800 < patched < 2_000  # waste was collected, and seldom
    anew = kept.anew()
    assert kept.table.memory_bytes <= 1.5 * anew.memory_bytes
    assert all(kept.table.lookup(network + 1) == anew.lookup(network + 1) for network, _ in pool)


@every_case
def test_a_table_that_shrinks_gives_its_memory_back(case: Case) -> None:
    kept = Kept(case, case.crowd, [1])
    kept.change(dict.fromkeys(list(case.crowd)[10:], NO_ROUTE))
    assert kept.table.memory_bytes <= kept.anew().memory_bytes
    assert len(kept.list) == 10


def test_a_table_that_an_engine_has_is_not_written() -> None:
    with EngineRig(small_table()) as rig:
        kept = Kept(CASE4, CASE4.crowd, [1])
        rig.engine.publish(kept.table)
        with pytest.raises(ValueError, match="an engine has"):
            kept.change({})
        rig.engine.publish(kept.anew())
        assert rig.engine.reclaim() == 0
        kept.change({})


@every_case
@pytest.mark.parametrize(
    ("number", "peer_addresses", "hops", "message"),
    [
        (4, [0, 0, 1, 2], [], "next hop without an address"),
        (None, [0, 0], [], "next hop without an address"),
        (None, [0, 0, 1, 2], [1], "is no peer"),
        (None, [0, 0, 1, 2], [4], "is no peer"),
    ],
)
def test_what_is_no_table_is_refused(
    case: Case, number: int | None, peer_addresses: list[int], hops: list[int], message: str
) -> None:
    routes = {} if number is None else {case.subnet(0, 64 if case.version == 6 else 24): number}
    kept = Kept(case, {}, [1, 2])
    columns = case.columns(routes)
    with pytest.raises(ValueError, match=message):
        kept.table.update(case.route_list(routes), case.addresses(peer_addresses), *columns, array("I", hops))


@every_case
def test_a_refused_change_leaves_the_list_as_it_was(case: Case) -> None:
    subnet = case.lowest
    kept = Kept(case, case.crowd, [1])
    for networks, lengths in (([subnet + 1], [24]), ([subnet], [case.bits + 1]), ([subnet] * 2, [case.bits - 8] * 2)):
        with pytest.raises(ValueError, match=r"host bits|twice"):
            kept.list.change(case.addresses(networks), array("B", lengths), array("I", [2] * len(networks)))
        assert len(kept.list) == len(case.crowd)


def test_what_are_no_ipv6_addresses_is_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        RouteList6(bytes(15), b"\x40", array("I", [2]))
    with pytest.raises(ValueError, match="16 bytes"):
        RouteTable6(RouteList6(), bytes(33))
    with pytest.raises(ValueError, match="hops 0 and 1"):
        RouteTable6(RouteList6(), bytes(16))
    with pytest.raises(ValueError, match="unknown next hop"):
        RouteTable6(RouteList6(bytes(16), b"\x40", array("I", [2])), bytes(32))
    for address in (-1, 1 << 128):
        with pytest.raises(OverflowError):
            RouteTable6(RouteList6(), bytes(32), address)


@pytest.mark.parametrize("spread", [46, 40, 32, 8], ids="in a /{}".format)
def test_a_hundred_thousand_ipv6_subnets_take_at_most_200_bytes_each(spread: int) -> None:
    n = share_of(100_000)
    places = random.Random(20261129).sample(range(1 << (64 - spread)), n)
    base = OVERLAY6 >> (128 - spread) << (128 - spread)
    subnets: dict[Prefix, int] = {(base | place << 64, 64): PEERS_FROM + i for i, place in enumerate(places)}
    kept = Kept(CASE6, subnets, [OVERLAY6 + 1 + i for i in range(n)])
    assert kept.table.memory_bytes <= 200 * n
    assert kept.list.memory_bytes <= 33 * n
    assert all(kept.table.lookup(network + 77) == hop for (network, _), hop in list(subnets.items())[::97])
