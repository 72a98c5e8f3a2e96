"""Tables that are built from the last one equal those that are built from nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_udp._fastpath.routes import NO_ROUTE, OWN
from flannel_udp.dataplane.table import TWO_FROM, TableBuilder
from flannel_udp.model import Address, Delta, Peer, Prefix


@dataclass(frozen=True)
class World:
    """A family. What stands here as IPv4 is the same in IPv6, at bits 32 to 63 of the prefixes."""

    version: int

    def __str__(self) -> str:
        return f"IPv{self.version}"

    def subnet(self, text: str) -> Prefix:
        return self._prefix(IPv4Network(text))

    def _prefix(self, network: IPv4Network) -> Prefix:
        if self.version == 4:
            return network
        return IPv6Network(((0xFD000010 << 96) + (int(network.network_address) << 64), 32 + network.prefixlen))

    def address(self, text: str) -> Address:
        address = IPv4Address(text)
        return address if self.version == 4 else IPv6Address((0x20010DB8 << 96) + int(address))

    @property
    def own(self) -> Prefix:
        return self.subnet("10.9.0.0/24")

    @cached_property
    def subnets(self) -> list[Prefix]:
        return [self.subnet(f"10.{n}.{m}.0/{length}") for n in (1, 2) for m in (0, 128) for length in (17, 20, 24)]

    @cached_property
    def places(self) -> list[int]:
        beside = [self.subnet(f"{address}/32") for address in ("10.1.5.1", "10.2.5.129", "10.9.0.1", "11.0.0.0")]
        return [int(prefix.network_address) + 1 for prefix in self.subnets + beside]

    @cached_property
    def crowd(self) -> tuple[Peer, ...]:
        return tuple(
            Peer(self._prefix(IPv4Network((0x0A400000 + (n << 8), 24))), self.address(str(IPv4Address(0xC6120000 + n))))
            for n in range(TWO_FROM + 100)
        )

    def builder(
        self, on_reuse: Callable[[int], object] = lambda _index: None, *, with_macs: bool = False
    ) -> TableBuilder:
        return TableBuilder(on_reuse, version=self.version, with_macs=with_macs)

    def destinations(self, table: Any) -> list[int]:
        """Return the underlay address for every place, as the packet path finds it: not by index, which may differ."""
        hops = [table.lookup(place) for place in self.places]
        return [hop if hop in (NO_ROUTE, OWN) else table.peer_address(hop) for hop in hops]


WORLDS = [World(4), World(6)]
in_every_world = pytest.mark.parametrize("world", WORLDS, ids=str)

State = dict[Prefix, Address]
states = st.dictionaries(st.integers(0, 11), st.integers(1, 4))


def peers(state: State) -> tuple[Peer, ...]:
    return tuple(Peer(subnet, address) for subnet, address in state.items())


def difference(old: State, new: State) -> Delta:
    return Delta(
        added=tuple(Peer(subnet, new[subnet]) for subnet in new.keys() - old.keys()),
        changed=tuple(Peer(subnet, new[subnet]) for subnet in new.keys() & old.keys() if new[subnet] != old[subnet]),
        removed=tuple(Peer(subnet, old[subnet]) for subnet in old.keys() - new.keys()),
    )


@in_every_world
@given(sequence=st.lists(states, min_size=1), own=st.booleans(), large=st.booleans())
def test_any_sequence_of_deltas_gives_the_table_of_the_end(
    world: World, sequence: list[dict[int, int]], own: bool, large: bool
) -> None:
    subnet = world.own if own else None
    builder = world.builder()
    rest = world.crowd if large else ()
    table = builder.build(subnet, [Delta(added=rest)], whole=True)
    before: State = {}
    for drawn in sequence:
        state = {world.subnets[n]: world.address(f"192.0.2.{last}") for n, last in drawn.items()}
        indexes = {address: builder.index_of(Peer(world.subnets[0], address)) for address in before.values()}
        former, told = table, world.destinations(table)
        table = builder.build(subnet, [difference(before, state)], whole=False)
        assert world.destinations(former) == told  # it is still in force
        anew = world.builder().build(subnet, [Delta(added=peers(state))], whole=True)
        assert world.destinations(table) == world.destinations(anew)
        assert set(builder.peers.values()) == {*rest, *peers(state)}
        for public_ip in set(state.values()) & indexes.keys():
            # and with it its counters
            assert builder.index_of(Peer(world.subnets[0], public_ip)) == indexes[public_ip]
            assert list(builder.indexes_at([public_ip])) == [(indexes[public_ip], public_ip)]
        assert all(table.peer_of(int(address)) for address in state.values())
        gone = set(before.values()) - set(state.values())
        assert not any(table.peer_of(int(address)) for address in gone)
        before = state


@in_every_world
def test_what_has_our_address_leads_to_us_and_yields_to_a_peer(world: World) -> None:
    inside, beside = world.subnets[2], world.subnets[5]
    holder = Peer(world.subnets[0], world.address("192.0.2.1"))
    builder = world.builder()
    table = builder.build(world.own, [Delta(added=(holder,), ours=frozenset({inside, beside}))], whole=True)
    assert [table.lookup(int(subnet[1])) for subnet in (inside, beside)] == [OWN, OWN]
    rival = Peer(beside, world.address("192.0.2.2"))
    table = builder.build(world.own, [Delta(added=(rival,), ours=frozenset({beside}))], whole=False)
    assert [table.peer_address(table.lookup(int(subnet[1]))) for subnet in (inside, beside)] == [
        int(holder.public_ip),
        int(rival.public_ip),
    ]
    table = builder.build(world.own, [Delta(removed=(rival,))], whole=False)
    assert table.lookup(int(beside[1])) == OWN
    table = builder.build(world.own, [Delta(added=(holder,))], whole=True)
    assert table.lookup(int(beside[1])) == NO_ROUTE


@in_every_world
def test_of_large_tables_there_are_two_in_turns(world: World) -> None:
    builder = world.builder()
    first = builder.build(world.own, [Delta(added=world.crowd)], whole=True)
    tables = [builder.build(world.own, [Delta(removed=(peer,))], whole=False) for peer in world.crowd[:3]]
    assert tables[0] is not first
    assert tables[1] is first
    assert tables[2] is tables[0]
    assert [tables[n].lookup(int(peer.subnet[1])) for n in (1, 2) for peer in world.crowd[:2]] == [NO_ROUTE] * 4


@in_every_world
def test_small_tables_are_made_anew(world: World) -> None:
    builder = world.builder()
    made = [builder.build(world.own, [Delta(added=(peer,))], whole=False) for peer in world.crowd[:5]]
    assert len(set(map(id, made))) == len(made)


@in_every_world
def test_a_large_table_that_became_small_is_right(world: World) -> None:
    builder = world.builder()
    builder.build(world.own, [Delta(added=world.crowd)], whole=True)
    table = builder.build(world.own, [Delta(removed=world.crowd[1:])], whole=False)
    assert [table.lookup(int(peer.subnet[1])) for peer in world.crowd[1:]] == [NO_ROUTE] * (len(world.crowd) - 1)
    for peer in world.crowd[1:4]:
        table = builder.build(world.own, [Delta(added=(peer,))], whole=False)
    assert all(table.lookup(int(peer.subnet[1])) != NO_ROUTE for peer in world.crowd[:4])


@in_every_world
def test_another_subnet_of_ours_is_in_the_next_table(world: World) -> None:
    other = world.subnet("10.9.1.0/24")
    builder = world.builder()
    for own in (world.own, other, None, world.own):
        table = builder.build(own, [Delta(added=world.crowd)], whole=False)
        ours = [subnet for subnet in (world.own, other) if table.lookup(int(subnet[1])) == OWN]
        assert ours == ([] if own is None else [own])


@in_every_world
def test_several_deltas_at_once_are_taken_in_their_order(world: World) -> None:
    old, new = (Peer(world.subnets[2], world.address(address)) for address in ("192.0.2.1", "192.0.2.2"))
    deltas = [Delta(added=(old,)), Delta(removed=(old,)), Delta(added=(new,))]
    builder = world.builder()
    builder.build(world.own, deltas, whole=True)
    assert builder.peers == {new.subnet: new}


@in_every_world
def test_a_whole_build_forgets_what_was_there(world: World) -> None:
    builder = world.builder()
    builder.build(world.own, [Delta(added=(Peer(world.subnets[0], world.address("192.0.2.1")),))], whole=True)
    table = builder.build(None, (), whole=True)
    assert world.destinations(table) == [NO_ROUTE] * len(world.places)
    assert table.peer_of(int(world.address("192.0.2.1"))) == NO_ROUTE


@in_every_world
def test_an_index_that_was_another_peers_is_told(world: World) -> None:
    reused: list[int] = []
    builder = world.builder(reused.append)
    first, second = (Peer(world.subnets[n], world.address(f"192.0.2.{n + 1}")) for n in (0, 1))
    builder.build(world.own, [Delta(added=(first,))], whole=True)
    index = builder.index_of(first)
    builder.build(world.own, [Delta(removed=(first,))], whole=False)
    assert reused == []
    builder.build(world.own, [Delta(added=(second,))], whole=False)
    assert reused == [index]
    assert builder.index_of(first) is None


@dataclass(frozen=True)
class MacHop:
    vtep_mac: int


@in_every_world
def test_macs_follow_their_peers_in_small_tables_and_in_large_ones(world: World) -> None:
    crowd = tuple(replace(peer, hop=MacHop(0x020000000000 + n)) for n, peer in enumerate(world.crowd))
    for rest in ((), crowd):
        builder = world.builder(with_macs=True)
        builder.build(world.own, [Delta(added=rest)], whole=True)
        states = [
            {world.subnets[0]: 7},
            {world.subnets[0]: 8, world.subnets[3]: 7},
            {world.subnets[3]: 9},
            {world.subnets[0]: 7, world.subnets[3]: 9},
        ]
        before: dict[Prefix, Peer] = {}
        for state in states:
            after = {
                subnet: Peer(subnet, world.address(f"192.0.2.{1 + world.subnets.index(subnet)}"), MacHop(mac))
                for subnet, mac in state.items()
            }
            delta = Delta(
                added=tuple(after[subnet] for subnet in after.keys() - before.keys()),
                changed=tuple(
                    after[subnet] for subnet in after.keys() & before.keys() if after[subnet] != before[subnet]
                ),
                removed=tuple(before[subnet] for subnet in before.keys() - after.keys()),
            )
            table = builder.build(world.own, [delta], whole=False)
            before = after
            assert [table.peer_mac(table.lookup(int(subnet[1]))) for subnet in state] == list(state.values())
            for peer in rest[:: len(rest) // 5 or 1]:
                assert table.peer_mac(table.lookup(int(peer.subnet[1]))) == peer.hop.vtep_mac


@in_every_world
def test_a_host_that_left_a_lease_with_a_former_mac_is_reached_by_each_as_it_says(world: World) -> None:
    """The stale one may come first or last: it takes nothing from the other."""
    host = world.address("192.0.2.9")
    live, stale = Peer(world.subnets[0], host, MacHop(7)), Peer(world.subnets[3], host, MacHop(8))
    for added in ((live, stale), (stale, live)):
        builder = world.builder(with_macs=True)
        table = builder.build(world.own, [Delta(added=added)], whole=True)
        for peer in added:
            index = table.lookup(int(peer.subnet[1]))
            assert (table.peer_mac(index), table.peer_address(index)) == (peer.hop.vtep_mac, int(host))
            assert builder.index_of(peer) == index
        assert sorted(builder.indexes_at([host])) == sorted((builder.index_of(peer), host) for peer in added)
        table = builder.build(world.own, [Delta(removed=(stale,))], whole=False)
        assert list(builder.indexes_at([host])) == [(builder.index_of(live), host)]
        assert table.peer_of(int(host)) == builder.index_of(live)


@in_every_world
def test_peers_are_told_in_the_order_of_their_subnets(world: World) -> None:
    builder = world.builder()
    builder.build(world.own, [Delta(added=world.crowd[::-1])], whole=True)
    assert builder.sorted_peers() == list(world.crowd)
