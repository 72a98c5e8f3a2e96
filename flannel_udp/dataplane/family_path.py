"""What the dataplane has of one IP version: sockets and their lanes, engines, and the peers' table."""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from flannel_udp._fastpath.engine import PATH_LIMIT_MIN_BYTES, Engine
from flannel_udp._fastpath.routes import OWN, PEERS_FROM, RouteTable
from flannel_udp._fastpath.routes6 import RouteTable6
from flannel_udp.dataplane.lanes import Lanes, close_lanes
from flannel_udp.dataplane.table import TableBuilder
from flannel_udp.dataplane.underlay import close_sockets, count_socket_drops
from flannel_udp.model import Address, Delta, Peer, PeerActivity, PeerTraffic, Prefix, RouteAnswer, longest_match
from flannel_udp.options import Offload

QUIET_POINT_POLL_S = 0.01
SAMPLE_PART = 1024
"""Peers that are looked at in one go: a few microseconds, and a millisecond where all of them are active."""


class Ends(NamedTuple):
    """The sockets of all workers at one address of this host, and the lanes of each."""

    address: Address
    sockets: Sequence[socket.socket]
    lanes: Sequence[Lanes] = ()

    def close(self) -> None:
        """Close them all."""
        close_lanes(self.lanes)
        close_sockets(self.sockets)


class FamilyPath:
    """One IP version of a dataplane: its packets travel over an underlay of the same one, between its own peers."""

    def __init__(self, ends: Ends, *, with_macs: bool) -> None:
        self.version = ends.address.version
        self.ends = ends
        self.icmp: socket.socket | None = None
        """For answers to packets that are dropped; the dataplane opens it last."""
        self.engines: list[Engine] = []
        """One a worker, likewise."""
        self.path_limits: dict[Address, int] = {}
        """Bytes that inner packets to these peers may have: what `limit_path_mtu` said."""
        self._builder = TableBuilder(self._note_baseline, version=self.version, with_macs=with_macs)
        self._baseline: dict[int, PeerTraffic] = {}  # of an index that was another peer's: what that one had
        self._table: RouteTable | RouteTable6 | None = None
        self._socket_drops = -count_socket_drops(ends.sockets)  # those of former sockets; less what was before us

    def close(self) -> None:
        """Close everything; no data thread runs."""
        for engine in self.engines:
            engine.close()
        self.ends.close()
        if self.icmp is not None:
            self.icmp.close()

    # The sockets

    def attach(self, queues: Sequence[int], ends: Ends, granted: Offload, epolls: Sequence[select.epoll]) -> None:
        """Have the engines, none of which runs, work on these queues of the device, and on these sockets."""
        for engine, queue, udp, lanes, epoll in zip(
            self.engines, queues, ends.sockets, ends.lanes, epolls, strict=True
        ):
            rungs = (granted.udp_segment, granted.join_tcp, granted.join_udp)
            engine.attach(queue, udp.fileno(), *rungs, lanes.filenos(), lanes.n_ports, epoll)
        self.ends = ends

    def close_former(self, former: Ends) -> None:
        """Close sockets that others have taken the place of."""
        self._socket_drops += count_socket_drops(former.sockets)
        former.close()

    @property
    def socket_drops(self) -> int:
        """How many datagrams the kernel has dropped that were for our sockets: full, or a wrong UDP checksum."""
        # Lanes receive nothing that they could lose.
        return self._socket_drops + count_socket_drops(self.ends.sockets)

    # The peers

    async def publish(self, own: Prefix | None, deltas: Sequence[Delta], *, whole: bool) -> None:
        """Put a table for our subnet in force, and return once the old one is let go, see `Dataplane.publish`."""
        await self._old_table_let_go()  # a publish that was cancelled may have left it with the engines
        table = await asyncio.to_thread(self._builder.build, own, deltas, whole=whole)
        for engine in self.engines:
            engine.publish(table)
        self._table = table
        await self._old_table_let_go()
        self._apply_path_limits(self.path_limits)  # only now: for an engine with the old table it is another's index

    async def _old_table_let_go(self) -> None:
        while sum(engine.reclaim() for engine in self.engines):
            await asyncio.sleep(QUIET_POINT_POLL_S)

    def limit_path_mtu(self, public_ip: Address, n_bytes: int | None) -> None:
        """Let inner packets to a peer have so many bytes at most, but what all may have; ``None``: as many as ever."""
        if n_bytes is None:
            self.path_limits.pop(public_ip, None)
        else:
            self.path_limits[public_ip] = max(n_bytes, PATH_LIMIT_MIN_BYTES[self.version])
        self._apply_path_limits([public_ip])

    def _apply_path_limits(self, public_ips: Collection[Address]) -> None:
        for index, public_ip in self._builder.indexes_at(public_ips):
            for engine in self.engines:
                engine.limit_path_mtu(index, int(public_ip), self.path_limits.get(public_ip, 0))

    def peers(self) -> list[Peer]:
        """Return the peers of the table in force."""
        return list(self._builder.peers.copy().values())

    def sorted_peers(self) -> list[Peer]:
        """Likewise, in the order of their subnets; takes long, so ask in a thread."""
        return self._builder.sorted_peers()

    def route(self, address: Address) -> RouteAnswer:
        """Ask the table in force for an address's next hop."""
        hop = 0 if self._table is None else self._table.lookup(int(address))
        if hop == OWN:
            return RouteAnswer(peer=None, own=True)
        return RouteAnswer(peer=longest_match(self._builder.peers, address) if hop else None, own=False)

    def traffic(self, peer: Peer) -> PeerTraffic:
        """Return a peer's traffic since it appeared."""
        index = self._builder.index_of(peer)
        if index is None:  # it went just now
            return PeerTraffic(0, 0, 0, 0, 0)
        traffic = self._raw_traffic(index)
        return traffic.since(self._baseline[index]) if index in self._baseline else traffic

    def activity(self) -> Iterator[list[PeerActivity]]:
        """Yield what has happened with peers since it was asked last, in parts that hold nobody up."""
        for first in range(PEERS_FROM, self._builder.indexes_end, SAMPLE_PART):
            found: dict[int, tuple[int, int, int, int, int]] = {}
            for engine in self.engines:
                for index, out, in_, longest, bytes_out, bytes_in in engine.sample_peers(first, SAMPLE_PART):
                    had = found.get(index, (0, 0, 0, 0, 0))
                    found[index] = (
                        *(had[0] + out, had[1] + in_, max(had[2], longest)),
                        *(had[3] + bytes_out, had[4] + bytes_in),
                    )
            addresses = ((self._builder.address_of(index), counted) for index, counted in found.items())
            yield [PeerActivity(address, *counted) for address, counted in addresses if address]

    def _note_baseline(self, index: int) -> None:
        self._baseline[index] = self._raw_traffic(index)
        for engine in self.engines:
            engine.sample_peers(index, 1)  # what the former peer did is nobody's activity

    def _raw_traffic(self, index: int) -> PeerTraffic:
        return PeerTraffic(*map(sum, zip(*(engine.peer_counters(index) for engine in self.engines), strict=True)))
