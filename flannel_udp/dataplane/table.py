"""From peers to route tables: every peer address has an index that stays the same from table to table."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence, Set
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from flannel_udp._fastpath.routes import OWN, PEERS_FROM, RouteTable
from flannel_udp.model import Peer


class BuiltTable(NamedTuple):
    """A route table, the indexes of its peers, and the peers whose index is new."""

    table: RouteTable
    indexes: Mapping[IPv4Address, int]
    fresh: Set[IPv4Address]


class TableBuilder:
    """Builds route tables. Peers are told apart by public IP; several subnets may share one.

    An index that no peer has any more is given out again, last freed first.
    """

    def __init__(self) -> None:
        self._index: dict[IPv4Address, int] = {}
        self._free: list[int] = []
        self._n_hops = PEERS_FROM

    def build(self, own: IPv4Network | None, peers: Sequence[Peer]) -> BuiltTable:
        """Return a table for our subnet and these peers."""
        present = {peer.public_ip for peer in peers}
        for gone in self._index.keys() - present:
            self._free.append(self._index.pop(gone))
        fresh = sorted(present - self._index.keys())
        for public_ip in fresh:
            self._index[public_ip] = self._take_index()

        networks, prefix_lens, next_hops = array("I"), array("B"), array("I")
        for peer in peers:
            networks.append(int(peer.subnet.network_address))
            prefix_lens.append(peer.subnet.prefixlen)
            next_hops.append(self._index[peer.public_ip])
        if own is not None:
            networks.append(int(own.network_address))
            prefix_lens.append(own.prefixlen)
            next_hops.append(OWN)
        addresses = array("I", bytes(4 * self._n_hops))
        for public_ip, index in self._index.items():
            addresses[index] = int(public_ip)
        # flannel0's address is the first of our subnet.
        own_address = int(own.network_address) if own is not None else 0
        table = RouteTable(networks, prefix_lens, next_hops, addresses, own_address)
        return BuiltTable(table, dict(self._index), frozenset(fresh))

    def _take_index(self) -> int:
        if self._free:
            return self._free.pop()
        self._n_hops += 1
        return self._n_hops - 1
