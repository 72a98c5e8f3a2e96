"""From peers to route tables: every peer address has an index that stays the same from table to table."""

from __future__ import annotations

import threading
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

from flannel_udp._fastpath.routes import NO_ROUTE, OWN, PEERS_FROM, RouteList, RouteTable
from flannel_udp._fastpath.routes6 import RouteList6, RouteTable6
from flannel_udp.dataplane.columns import Column, new_column, packed
from flannel_udp.model import Address, Delta, Peer, Prefix

TWO_FROM = 4096
"""Routes from which on there are two tables: a smaller one is built anew within a millisecond."""


_End = Address | tuple[Address, int]
"""Where packets to a peer go: its public IP, and where the encapsulation has any its MAC."""


class _Places(NamedTuple):
    """Where a table may differ from the one before it."""

    networks: Column
    prefix_lens: array[int]
    indexes: array[int]


class TableBuilder:
    """Builds route tables of one IP version, each from the one before.

    Peers are told apart by public IP, and `with_macs` by that and `hop.vtep_mac`; several subnets may share one.
    An index that no peer has any more is given out again, last freed first; `on_reuse(index)` is called before anybody
    can learn of that. Of large tables there are two: the one that was in force before the last one is brought up to
    date and is the next one, so that a build costs what has changed (docs/decisions/0010). Whoever publishes a table
    has to take it back from all engines before the build after the next one.
    """

    def __init__(
        self,
        on_reuse: Callable[[int], object] = lambda _index: None,
        *,
        version: int = 4,
        with_macs: bool = False,
    ) -> None:
        self._on_reuse = on_reuse
        self._version = version
        # A build in a thread goes on when whoever waits for it is cancelled: the next one waits for its end.
        self._one_at_a_time = threading.Lock()
        self._free: list[int] = []
        self._addresses = new_column(version, [0] * PEERS_FROM)  # by index; 0: no peer has it
        self._macs = array("Q", [0] * PEERS_FROM) if with_macs else None  # likewise
        self._index: dict[_End, int] = {}
        self._forget()

    def _forget(self) -> None:
        for index in self._index.values():
            self._addresses[index] = 0
            self._free.append(index)
        self._index = {}
        self._peers: dict[Prefix, Peer] = {}
        self._ours = frozenset[Prefix]()  # what leads to us beside our subnet
        self._users: Counter[_End] = Counter()  # how many subnets lead there
        self._own: Prefix | None = None
        self._routes: Any = RouteList() if self._version == 4 else RouteList6()
        self._table: RouteTable | RouteTable6 | None = None
        self._spare: Any = None  # the table before it, which lacks what `_missed` says
        self._missed = _Places(new_column(self._version), array("B"), array("I"))

    @property
    def peers(self) -> dict[Prefix, Peer]:
        """The peers of the last table, by subnet; changed in place by the thread that builds, so copy it to walk it."""
        return self._peers

    def sorted_peers(self) -> list[Peer]:
        """Return the peers of the last table in the order of their subnets; waits for a build that is under way."""
        with self._one_at_a_time:
            # In many small sorts: one of 100,000 would hold the GIL for 20 ms, and data threads may want it.
            blocks: dict[int, list[Peer]] = {}
            block_bits = 16 if self._version == 4 else 72  # 256 subnets of 24, or of 64 bits
            for peer in self._peers.values():
                blocks.setdefault(int(peer.subnet.network_address) >> block_bits, []).append(peer)
        return [peer for block in sorted(blocks) for peer in sorted(blocks[block])]

    def index_of(self, peer: Peer) -> int | None:
        """Return a peer's index in the last table."""
        return self._index.get(self._end(peer))

    def indexes_at(self, public_ips: Collection[Address]) -> Iterator[tuple[int, Address]]:
        """Yield the indexes of all peers at these public IPs, each with its own."""
        if self._macs is None:
            yield from ((self._index[public_ip], public_ip) for public_ip in public_ips if public_ip in self._index)
        elif wanted := {int(public_ip): public_ip for public_ip in public_ips}:
            yield from ((index, wanted[at]) for index, at in enumerate(self._addresses) if at in wanted)

    def address_of(self, index: int) -> int:
        """Return the public IP, in host order, whose index it is in the last table, 0 for nobody's."""
        return int(self._addresses[index])

    @property
    def indexes_end(self) -> int:
        """Every index is below this."""
        return len(self._addresses)

    def build(self, own: Prefix | None, deltas: Sequence[Delta], *, whole: bool) -> RouteTable | RouteTable6:
        """Return a table for our subnet with the peers of the last one after `deltas`; `whole`: with no others."""
        with self._one_at_a_time:
            if whole:
                self._forget()
            subnets: set[Prefix] = set()
            indexes: set[int] = set()
            self._take(deltas, subnets, indexes)
            if own != self._own:
                subnets.update(subnet for subnet in (self._own, own) if subnet is not None)
                self._own = own
                self._table = self._spare = None  # the address in them is the former subnet's
            last, spare = self._table, self._spare
            self._table = self._spare = None  # if the following fails, nothing is built on what it leaves
            changed = self._change_routes(subnets, indexes)
            table: RouteTable | RouteTable6
            if spare is None:
                new_table: Any = RouteTable if self._version == 4 else RouteTable6
                table = new_table(self._routes, packed(self._addresses), _first_address(own), self._macs)
            else:
                table = spare
                networks, lens, hops = (here + missed for here, missed in zip(changed, self._missed, strict=True))
                spare.update(self._routes, packed(self._addresses), packed(networks), lens, hops, self._macs)
            if len(self._routes) >= TWO_FROM:
                self._spare, self._missed = last, changed
            self._table = table
            return table

    def _take(self, deltas: Sequence[Delta], subnets: set[Prefix], indexes: set[int]) -> None:
        """Take in what became of the peers; note for which subnets, and which indexes changed hands."""
        left: set[_End] = set()
        for delta in deltas:
            if delta.ours is not None:
                subnets.update(self._ours ^ delta.ours)
                self._ours = delta.ours
            for peer in delta.removed:
                self._leave(self._peers.pop(peer.subnet, None), left)
                subnets.add(peer.subnet)
            for peer in (*delta.added, *delta.changed):
                self._leave(self._peers.get(peer.subnet), left)
                self._arrive(peer, indexes)
                subnets.add(peer.subnet)
        for end in left:  # only now: a peer that moved to another subnet keeps its index
            if not self._users[end]:
                del self._users[end]
                index = self._index.pop(end)
                self._addresses[index] = 0
                self._free.append(index)
                indexes.add(index)

    def _end(self, peer: Peer) -> _End:
        return peer.public_ip if self._macs is None else (peer.public_ip, peer.hop.vtep_mac)

    def _arrive(self, peer: Peer, indexes: set[int]) -> None:
        end = self._end(peer)
        if end not in self._index:
            self._index[end] = index = self._take_index()
            self._addresses[index] = int(peer.public_ip)
            if self._macs is not None:
                self._macs[index] = peer.hop.vtep_mac
            indexes.add(index)
        self._users[end] += 1
        self._peers[peer.subnet] = peer

    def _leave(self, peer: Peer | None, left: set[_End]) -> None:
        if peer is not None:
            end = self._end(peer)
            self._users[end] -= 1
            left.add(end)

    def _take_index(self) -> int:
        if not self._free:
            self._addresses.append(0)
            if self._macs is not None:
                self._macs.append(0)
            return len(self._addresses) - 1
        index = self._free.pop()
        self._on_reuse(index)
        return index

    def _change_routes(self, subnets: set[Prefix], indexes: set[int]) -> _Places:
        """Bring the list up to date at these subnets; return what a table has to bring up to date."""
        changed = _Places(new_column(self._version), array("B"), array("I", indexes))
        next_hops = array("I")
        for subnet in subnets:
            changed.networks.append(int(subnet.network_address))
            changed.prefix_lens.append(subnet.prefixlen)
            peer = self._peers.get(subnet)
            if subnet == self._own:
                next_hops.append(OWN)
            elif peer is not None:
                next_hops.append(self._index[self._end(peer)])
            else:
                next_hops.append(OWN if subnet in self._ours else NO_ROUTE)
        self._routes.change(packed(changed.networks), changed.prefix_lens, next_hops)
        return changed


def _first_address(own: Prefix | None) -> int:
    """Return the tunnel device's address, which is our subnet's first, or 0."""
    return 0 if own is None else int(own.network_address)
