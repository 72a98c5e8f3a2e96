"""Tables that are built from the last one equal those that are built from nothing."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from hypothesis import given
from hypothesis import strategies as st

from flannel_udp._fastpath.routes import NO_ROUTE, OWN
from flannel_udp.dataplane.table import BuiltTable, TableBuilder
from flannel_udp.model import Delta, Peer

OWN_SUBNET = IPv4Network("10.9.0.0/24")
SUBNETS = [IPv4Network(f"10.{n}.{m}.0/{length}") for n in (1, 2) for m in (0, 128) for length in (17, 20, 24)]
PLACES = [int(subnet.network_address) + 1 for subnet in SUBNETS] + [0x0A010501, 0x0A020581, 0x0A090001, 0x0B000000]

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


def destinations(built: BuiltTable) -> list[int]:
    """Return the underlay address for every place, as the packet path finds it: not by index, which may differ."""
    hops = [built.table.lookup(place) for place in PLACES]
    return [hop if hop in (NO_ROUTE, OWN) else built.table.peer_address(hop) for hop in hops]


@given(st.lists(states, min_size=1), st.booleans())
def test_any_sequence_of_deltas_gives_the_table_of_the_end(
    sequence: list[dict[IPv4Network, IPv4Address]], own: bool
) -> None:
    subnet = OWN_SUBNET if own else None
    builder = TableBuilder()
    built = builder.build(subnet, (), whole=True)
    before: dict[IPv4Network, IPv4Address] = {}
    for state in sequence:
        indexes = {route.peer.public_ip: route.next_hop for route in built.routes.values()}
        built = builder.build(subnet, [difference(before, state)], whole=False)
        anew = TableBuilder().build(subnet, [Delta(added=peers(state))], whole=True)
        assert destinations(built) == destinations(anew)
        assert {route.peer for route in built.routes.values()} == set(peers(state))
        for public_ip, index in indexes.items():
            kept = {route.next_hop for route in built.routes.values() if route.peer.public_ip == public_ip}
            assert kept <= {index}  # a peer that stays keeps its index, and with it its counters
        assert all(built.table.peer_of(int(address)) for address in state.values())
        gone = set(before.values()) - set(state.values())
        assert not any(built.table.peer_of(int(address)) for address in gone)
        before = state


def test_several_deltas_at_once_are_taken_in_their_order() -> None:
    old, new = (Peer(SUBNETS[2], IPv4Address(address)) for address in ("192.0.2.1", "192.0.2.2"))
    deltas = [Delta(added=(old,)), Delta(removed=(old,)), Delta(added=(new,))]
    built = TableBuilder().build(OWN_SUBNET, deltas, whole=True)
    assert [route.peer for route in built.routes.values()] == [new]


def test_a_whole_build_forgets_what_was_there() -> None:
    builder = TableBuilder()
    builder.build(OWN_SUBNET, [Delta(added=(Peer(SUBNETS[0], IPv4Address("192.0.2.1")),))], whole=True)
    built = builder.build(None, (), whole=True)
    assert destinations(built) == [NO_ROUTE] * len(PLACES)
    assert built.table.peer_of(int(IPv4Address("192.0.2.1"))) == NO_ROUTE


def test_an_index_that_was_another_peers_is_told() -> None:
    builder = TableBuilder()
    first, second = (Peer(SUBNETS[n], IPv4Address(f"192.0.2.{n + 1}")) for n in (0, 1))
    built = builder.build(OWN_SUBNET, [Delta(added=(first,))], whole=True)
    assert built.reused == []
    index = built.routes[first.subnet].next_hop
    assert builder.build(OWN_SUBNET, [Delta(removed=(first,))], whole=False).reused == []
    assert builder.build(OWN_SUBNET, [Delta(added=(second,))], whole=False).reused == [index]
