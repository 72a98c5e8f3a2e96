"""From peers to route tables: every peer address has an index that stays the same from table to table."""

from __future__ import annotations

import threading
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from flannel_udp._fastpath.routes import NO_ROUTE, OWN, PEERS_FROM, RouteList, RouteTable
from flannel_udp.model import Delta, Peer

TWO_FROM = 4096
"""Routes from which on there are two tables: a smaller one is built anew within a millisecond."""


class _Places(NamedTuple):
    """Where a table may differ from the one before it."""

    networks: array[int]
    prefix_lens: array[int]
    indexes: array[int]


class TableBuilder:
    """Builds route tables, each from the one before. Peers are told apart by public IP; several subnets may share one.

    An index that no peer has any more is given out again, last freed first; `on_reuse(index)` is called before anybody
    can learn of that. Of large tables there are two: the one that was in force before the last one is brought up to
    date and is the next one, so that a build costs what has changed (docs/decisions/0010). Whoever publishes a table
    has to take it back from all engines before the build after the next one.
    """

    def __init__(self, on_reuse: Callable[[int], object] = lambda _index: None) -> None:
        self._on_reuse = on_reuse
        # A build in a thread goes on when whoever waits for it is cancelled: the next one waits for its end.
        self._one_at_a_time = threading.Lock()
        self._free: list[int] = []
        self._addresses = array("I", [0] * PEERS_FROM)  # by index; 0: no peer has it
        self._index: dict[IPv4Address, int] = {}
        self._forget()

    def _forget(self) -> None:
        for index in self._index.values():
            self._addresses[index] = 0
            self._free.append(index)
        self._index = {}
        self._peers: dict[IPv4Network, Peer] = {}
        self._users: Counter[IPv4Address] = Counter()  # how many subnets lead there
        self._own: IPv4Network | None = None
        self._routes = RouteList()
        self._table: RouteTable | None = None
        self._spare: RouteTable | None = None  # the table before it, which lacks what `_missed` says
        self._missed = _Places(array("I"), array("B"), array("I"))

    @property
    def peers(self) -> dict[IPv4Network, Peer]:
        """The peers of the last table, by subnet; changed in place by the thread that builds, so copy it to walk it."""
        return self._peers

    def sorted_peers(self) -> list[Peer]:
        """Return the peers of the last table in the order of their subnets; waits for a build that is under way."""
        with self._one_at_a_time:
            # In many small sorts: one of 100,000 would hold the GIL for 20 ms, and data threads may want it.
            blocks: dict[int, list[Peer]] = {}
            for peer in self._peers.values():
                blocks.setdefault(int(peer.subnet.network_address) >> 16, []).append(peer)
        return [peer for block in sorted(blocks) for peer in sorted(blocks[block])]

    def index_of(self, public_ip: IPv4Address) -> int | None:
        """Return a peer's index in the last table."""
        return self._index.get(public_ip)

    def build(self, own: IPv4Network | None, deltas: Sequence[Delta], *, whole: bool) -> RouteTable:
        """Return a table for our subnet with the peers of the last one after `deltas`; `whole`: with no others."""
        with self._one_at_a_time:
            if whole:
                self._forget()
            subnets: set[IPv4Network] = set()
            indexes: set[int] = set()
            self._take(deltas, subnets, indexes)
            if own != self._own:
                subnets.update(subnet for subnet in (self._own, own) if subnet is not None)
                self._own = own
                self._table = self._spare = None  # the address in them is the former subnet's
            last, spare = self._table, self._spare
            self._table = self._spare = None  # if the following fails, nothing is built on what it leaves
            changed = self._change_routes(subnets, indexes)
            if spare is None:
                table = RouteTable(self._routes, self._addresses, _first_address(own))
            else:
                table = spare
                both = _Places(*(here + missed for here, missed in zip(changed, self._missed, strict=True)))
                table.update(self._routes, self._addresses, *both)
            if len(self._routes) >= TWO_FROM:
                self._spare, self._missed = last, changed
            self._table = table
            return table

    def _take(self, deltas: Sequence[Delta], subnets: set[IPv4Network], indexes: set[int]) -> None:
        """Take in what became of the peers; note for which subnets, and which indexes changed hands."""
        left: set[IPv4Address] = set()
        for delta in deltas:
            for peer in delta.removed:
                self._leave(self._peers.pop(peer.subnet, None), left)
                subnets.add(peer.subnet)
            for peer in (*delta.added, *delta.changed):
                self._leave(self._peers.get(peer.subnet), left)
                self._arrive(peer, indexes)
                subnets.add(peer.subnet)
        for address in left:  # only now: a peer that moved to another subnet keeps its index
            if not self._users[address]:
                del self._users[address]
                index = self._index.pop(address)
                self._addresses[index] = 0
                self._free.append(index)
                indexes.add(index)

    def _arrive(self, peer: Peer, indexes: set[int]) -> None:
        address = peer.public_ip
        if address not in self._index:
            self._index[address] = index = self._take_index()
            self._addresses[index] = int(address)
            indexes.add(index)
        self._users[address] += 1
        self._peers[peer.subnet] = peer

    def _leave(self, peer: Peer | None, left: set[IPv4Address]) -> None:
        if peer is not None:
            self._users[peer.public_ip] -= 1
            left.add(peer.public_ip)

    def _take_index(self) -> int:
        if not self._free:
            self._addresses.append(0)
            return len(self._addresses) - 1
        index = self._free.pop()
        self._on_reuse(index)
        return index

    def _change_routes(self, subnets: set[IPv4Network], indexes: set[int]) -> _Places:
        """Bring the list up to date at these subnets; return what a table has to bring up to date."""
        changed = _Places(array("I"), array("B"), array("I", indexes))
        next_hops = array("I")
        for subnet in subnets:
            changed.networks.append(int(subnet.network_address))
            changed.prefix_lens.append(subnet.prefixlen)
            peer = self._peers.get(subnet)
            if subnet == self._own:
                next_hops.append(OWN)
            else:
                next_hops.append(NO_ROUTE if peer is None else self._index[peer.public_ip])
        self._routes.change(changed.networks, changed.prefix_lens, next_hops)
        return changed


def _first_address(own: IPv4Network | None) -> int:
    """Return flannel0's address, which is our subnet's first, or 0."""
    return 0 if own is None else int(own.network_address)
