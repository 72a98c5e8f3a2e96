"""Tables that are built from the last one equal those that are built from nothing."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from hypothesis import given, settings
from hypothesis import strategies as st

from flannel_udp._fastpath.routes import NO_ROUTE, OWN, RouteTable
from flannel_udp.dataplane.table import TWO_FROM, TableBuilder
from flannel_udp.model import Delta, Peer

OWN_SUBNET = IPv4Network("10.9.0.0/24")
SUBNETS = [IPv4Network(f"10.{n}.{m}.0/{length}") for n in (1, 2) for m in (0, 128) for length in (17, 20, 24)]
PLACES = [int(subnet.network_address) + 1 for subnet in SUBNETS] + [0x0A010501, 0x0A020581, 0x0A090001, 0x0B000000]
CROWD = tuple(
    Peer(IPv4Network((0x0A400000 + (n << 8), 24)), IPv4Address(0xC6120000 + n)) for n in range(TWO_FROM + 100)
)

addresses = st.integers(1, 4).map(lambda n: IPv4Address(f"192.0.2.{n}"))
states = st.dictionaries(st.sampled_from(SUBNETS), addresses)


def peers(state: dict[IPv4Network, IPv4Address]) -> tuple[Peer, ...]:
    return tuple(Peer(subnet, address) for subnet, address in state.items())


def difference(old: dict[IPv4Network, IPv4Address], new: dict[IPv4Network, IPv4Address]) -> Delta:
    return Delta(
        added=tuple(Peer(subnet, new[subnet]) for subnet in new.keys() - old.keys()),
        changed=tuple(Peer(subnet, new[subnet]) for subnet in new.keys() & old.keys() if new[subnet] != old[subnet]),
        removed=tuple(Peer(subnet, old[subnet]) for subnet in old.keys() - new.keys()),
    )


def destinations(table: RouteTable) -> list[int]:
    """Return the underlay address for every place, as the packet path finds it: not by index, which may differ."""
    hops = [table.lookup(place) for place in PLACES]
    return [hop if hop in (NO_ROUTE, OWN) else table.peer_address(hop) for hop in hops]


@given(st.lists(states, min_size=1), st.booleans(), st.booleans())
@settings(deadline=None)
def test_any_sequence_of_deltas_gives_the_table_of_the_end(
    sequence: list[dict[IPv4Network, IPv4Address]], own: bool, large: bool
) -> None:
    subnet = OWN_SUBNET if own else None
    builder = TableBuilder()
    rest = CROWD if large else ()
    table = builder.build(subnet, [Delta(added=rest)], whole=True)
    before: dict[IPv4Network, IPv4Address] = {}
    for state in sequence:
        indexes = {address: builder.index_of(address) for address in before.values()}
        former, told = table, destinations(table)
        table = builder.build(subnet, [difference(before, state)], whole=False)
        assert destinations(former) == told  # it is still in force
        anew = TableBuilder().build(subnet, [Delta(added=peers(state))], whole=True)
        assert destinations(table) == destinations(anew)
        assert set(builder.peers.values()) == {*rest, *peers(state)}
        for public_ip in set(state.values()) & indexes.keys():
            assert builder.index_of(public_ip) == indexes[public_ip]  # and with it its counters
        assert all(table.peer_of(int(address)) for address in state.values())
        gone = set(before.values()) - set(state.values())
        assert not any(table.peer_of(int(address)) for address in gone)
        before = state


def test_of_large_tables_there_are_two_in_turns() -> None:
    builder = TableBuilder()
    first = builder.build(OWN_SUBNET, [Delta(added=CROWD)], whole=True)
    tables = [builder.build(OWN_SUBNET, [Delta(removed=(peer,))], whole=False) for peer in CROWD[:3]]
    assert tables[0] is not first
    assert tables[1] is first
    assert tables[2] is tables[0]
    assert [tables[n].lookup(int(peer.subnet[1])) for n in (1, 2) for peer in CROWD[:2]] == [NO_ROUTE] * 4


def test_small_tables_are_made_anew() -> None:
    builder = TableBuilder()
    made = [builder.build(OWN_SUBNET, [Delta(added=(peer,))], whole=False) for peer in CROWD[:5]]
    assert len(set(map(id, made))) == len(made)


def test_a_large_table_that_became_small_is_right() -> None:
    builder = TableBuilder()
    builder.build(OWN_SUBNET, [Delta(added=CROWD)], whole=True)
    table = builder.build(OWN_SUBNET, [Delta(removed=CROWD[1:])], whole=False)
    assert [table.lookup(int(peer.subnet[1])) for peer in CROWD[1:]] == [NO_ROUTE] * (len(CROWD) - 1)
    for peer in CROWD[1:4]:
        table = builder.build(OWN_SUBNET, [Delta(added=(peer,))], whole=False)
    assert all(table.lookup(int(peer.subnet[1])) != NO_ROUTE for peer in CROWD[:4])


def test_another_subnet_of_ours_is_in_the_next_table() -> None:
    builder = TableBuilder()
    for own in (OWN_SUBNET, IPv4Network("10.9.1.0/24"), None, OWN_SUBNET):
        table = builder.build(own, [Delta(added=CROWD)], whole=False)
        ours = [place for place in ("10.9.0.1", "10.9.1.1") if table.lookup(int(IPv4Address(place))) == OWN]
        assert ours == ([] if own is None else [str(own[1])])


def test_several_deltas_at_once_are_taken_in_their_order() -> None:
    old, new = (Peer(SUBNETS[2], IPv4Address(address)) for address in ("192.0.2.1", "192.0.2.2"))
    deltas = [Delta(added=(old,)), Delta(removed=(old,)), Delta(added=(new,))]
    builder = TableBuilder()
    builder.build(OWN_SUBNET, deltas, whole=True)
    assert builder.peers == {new.subnet: new}


def test_a_whole_build_forgets_what_was_there() -> None:
    builder = TableBuilder()
    builder.build(OWN_SUBNET, [Delta(added=(Peer(SUBNETS[0], IPv4Address("192.0.2.1")),))], whole=True)
    table = builder.build(None, (), whole=True)
    assert destinations(table) == [NO_ROUTE] * len(PLACES)
    assert table.peer_of(int(IPv4Address("192.0.2.1"))) == NO_ROUTE


def test_an_index_that_was_another_peers_is_told() -> None:
    reused: list[int] = []
    builder = TableBuilder(reused.append)
    first, second = (Peer(SUBNETS[n], IPv4Address(f"192.0.2.{n + 1}")) for n in (0, 1))
    builder.build(OWN_SUBNET, [Delta(added=(first,))], whole=True)
    index = builder.index_of(first.public_ip)
    builder.build(OWN_SUBNET, [Delta(removed=(first,))], whole=False)
    assert reused == []
    builder.build(OWN_SUBNET, [Delta(added=(second,))], whole=False)
    assert reused == [index]
    assert builder.index_of(first.public_ip) is None
