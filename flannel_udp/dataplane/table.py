"""From peers to route tables: every peer address has an index that stays the same from table to table."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from flannel_udp._fastpath.routes import OWN, PEERS_FROM, RouteTable
from flannel_udp.model import Delta, Peer


class Route(NamedTuple):
    """A peer's subnet leads to this next hop of the table."""

    peer: Peer
    next_hop: int


class BuiltTable(NamedTuple):
    """A route table, its routes, and the indexes that were another peer's before."""

    table: RouteTable
    routes: Mapping[IPv4Network, Route]
    reused: Sequence[int]


class TableBuilder:
    """Builds route tables, each from the one before. Peers are told apart by public IP; several subnets may share one.

    An index that no peer has any more is given out again, last freed first. What Python does for a table grows with
    what has changed, not with the peers: 1,000 changes a second among 100,000 peers must not be felt.
    """

    def __init__(self) -> None:
        self._free: list[int] = []
        self._addresses = array("I", [0] * PEERS_FROM)  # by index; 0: no peer has it
        self._forget()

    def _forget(self) -> None:
        self._routes: dict[IPv4Network, Route] = {}
        self._index: dict[IPv4Address, int] = {}
        self._users: Counter[IPv4Address] = Counter()  # how many subnets lead there
        # The routes once more, in the order of address and length, which RouteTable then need not make.
        self._networks, self._prefix_lens, self._next_hops = array("I"), array("B"), array("I")

    def build(self, own: IPv4Network | None, deltas: Sequence[Delta], *, whole: bool) -> BuiltTable:
        """Return a table for our subnet with the peers of the last one after `deltas`; `whole`: with no others."""
        if whole:
            for index in self._index.values():
                self._free_index(index)
            self._forget()
        reused: list[int] = []
        left: set[IPv4Address] = set()
        for delta in deltas:
            for peer in delta.removed:
                self._remove(peer.subnet, left)
            # In order, as what goes to the end of an array moves nothing.
            for peer in sorted((*delta.added, *delta.changed), key=_place):
                self._remove(peer.subnet, left)
                self._add(peer, reused)
        for address in left:  # only now: a peer that moved to another subnet keeps its index
            if not self._users[address]:
                del self._users[address]
                self._free_index(self._index.pop(address))
        return BuiltTable(self._table(own), dict(self._routes), reused)

    def _add(self, peer: Peer, reused: list[int]) -> None:
        address = peer.public_ip
        if address not in self._index:
            self._index[address] = self._take_index(address, reused)
        self._users[address] += 1
        index = self._index[address]
        self._routes[peer.subnet] = Route(peer, index)
        self._insert(peer.subnet, index)

    def _remove(self, subnet: IPv4Network, left: set[IPv4Address]) -> None:
        route = self._routes.pop(subnet, None)
        if route is None:
            return
        self._delete(subnet)
        self._users[route.peer.public_ip] -= 1
        left.add(route.peer.public_ip)

    def _take_index(self, address: IPv4Address, reused: list[int]) -> int:
        if not self._free:
            self._addresses.append(int(address))
            return len(self._addresses) - 1
        index = self._free.pop()
        reused.append(index)
        self._addresses[index] = int(address)
        return index

    def _free_index(self, index: int) -> None:
        self._addresses[index] = 0
        self._free.append(index)

    def _insert(self, subnet: IPv4Network, next_hop: int) -> None:
        at = self._find(subnet)
        self._networks.insert(at, int(subnet.network_address))
        self._prefix_lens.insert(at, subnet.prefixlen)
        self._next_hops.insert(at, next_hop)

    def _delete(self, subnet: IPv4Network) -> None:
        at = self._find(subnet)
        for column in (self._networks, self._prefix_lens, self._next_hops):
            del column[at]

    def _find(self, subnet: IPv4Network) -> int:
        """Return where the subnet stands in the columns, or is to be inserted."""
        network = int(subnet.network_address)
        at = bisect_left(self._networks, network)
        while at < len(self._networks) and self._networks[at] == network and self._prefix_lens[at] < subnet.prefixlen:
            at += 1
        return at

    def _table(self, own: IPv4Network | None) -> RouteTable:
        columns = (self._networks, self._prefix_lens, self._next_hops, self._addresses)
        if own is None:
            return RouteTable(*columns)
        self._insert(own, OWN)
        try:
            return RouteTable(*columns, int(own.network_address))  # flannel0's address is our subnet's first
        finally:
            self._delete(own)


def _place(peer: Peer) -> tuple[int, int]:
    return int(peer.subnet.network_address), peer.subnet.prefixlen
