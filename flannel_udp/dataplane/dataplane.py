"""The dataplane as one object: opened once, then tables in and counters out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any, NamedTuple

from flannel_udp._fastpath.engine import Engine
from flannel_udp._fastpath.routes import OWN, RouteTable
from flannel_udp.dataplane.offload import enable_on_socket, enable_on_tunnel
from flannel_udp.dataplane.table import TableBuilder
from flannel_udp.dataplane.tunnel import VNET_HEADER_BYTES, Tunnel, open_tunnel
from flannel_udp.dataplane.underlay import open_icmp, open_underlay
from flannel_udp.dataplane.worker import Worker
from flannel_udp.model import Peer
from flannel_udp.options import Offload

QUIET_POINT_POLL_S = 0.01


class PeerTraffic(NamedTuple):
    """What went to and came from one peer; bytes are inner bytes."""

    packets_out: int
    bytes_out: int
    packets_in: int
    bytes_in: int

    def since(self, base: PeerTraffic) -> PeerTraffic:
        """Return the traffic after `base` was read."""
        return PeerTraffic(*(now - then for now, then in zip(self, base, strict=True)))


@dataclass(frozen=True, slots=True)
class RouteAnswer:
    """What the table in force says of an address: a peer, our own subnet, or nothing."""

    peer: Peer | None
    own: bool


class Dataplane:
    """flannel0, the underlay socket and the engine between them.

    `on_fault(errno)` is called in the data thread when flannel0 is lost. Raises FlannelError where something cannot be
    opened; nothing stays open then.
    """

    def __init__(
        self,
        address: IPv4Address,
        port: int,
        source_check: str,
        wanted: Offload,
        on_fault: Callable[[int], None],
    ) -> None:
        self.tunnel: Tunnel = open_tunnel()
        try:
            self._udp = open_underlay(address, port)
            try:
                self._icmp = open_icmp()
            except BaseException:
                self._udp.close()
                raise
        except BaseException:
            self.tunnel.close()
            raise
        granted = enable_on_socket(self._udp, enable_on_tunnel(self.tunnel.fileno(), wanted))
        self._granted = granted
        self._engine = Engine(
            self.tunnel.fileno(),
            self._udp.fileno(),
            self._icmp.fileno(),
            port,
            source_check=source_check,
            vnet_bytes=VNET_HEADER_BYTES,
            segment=granted.udp_segment,
            join_tcp=granted.join_tcp,
            join_udp=granted.join_udp,
        )
        self._worker = Worker(self._engine, on_fault)
        self._builder = TableBuilder()
        self._baseline: dict[IPv4Address, PeerTraffic] = {}
        self._table: RouteTable | None = None
        self._peers: dict[IPv4Network, Peer] = {}
        self._started = False

    def start(self) -> None:
        """Start to move packets; until a table is published all are dropped, and counted."""
        self._worker.start()
        self._started = True

    async def publish(self, own: IPv4Network | None, peers: Sequence[Peer]) -> None:
        """Put a table for our subnet and these peers in force, and return once the old one is let go.

        The table is built outside the data thread, which never waits: it finds the new pointer at its next batch.
        """
        table, fresh = await asyncio.to_thread(self._builder.build, own, peers)
        for public_ip in fresh:
            self._baseline[public_ip] = self._raw_traffic(public_ip)
        self._engine.publish(table)
        self._table = table
        self._peers = {peer.subnet: peer for peer in peers}
        while self._engine.reclaim():
            await asyncio.sleep(QUIET_POINT_POLL_S)

    @property
    def offload(self) -> Offload:
        """The offloads in use: granted at start, and not lost since."""
        return replace(self._granted, udp_segment=self._engine.segments)

    def counters(self) -> dict[str, Any]:
        """Return the engine's counters by direction: packets, bytes and drops by reason."""
        return self._engine.counters()

    def peer_traffic(self) -> list[tuple[Peer, PeerTraffic]]:
        """Return every route with its peer's traffic since the peer appeared."""
        return [
            (peer, self._raw_traffic(peer.public_ip).since(self._baseline[peer.public_ip]))
            for _, peer in sorted(self._peers.items())
        ]

    def route(self, address: IPv4Address) -> RouteAnswer:
        """Ask the table in force for an address's next hop."""
        hop = 0 if self._table is None else self._table.lookup(int(address))
        if hop == OWN:
            return RouteAnswer(peer=None, own=True)
        for prefix_len in range(32, 0, -1) if hop else ():
            peer = self._peers.get(IPv4Network((address, prefix_len), strict=False))
            if peer is not None:
                return RouteAnswer(peer=peer, own=False)
        return RouteAnswer(peer=None, own=False)

    def close(self) -> None:
        """Stop the data thread and close everything; the kernel removes flannel0."""
        if self._started:
            self._worker.stop()
        self._engine.close()
        self._icmp.close()
        self._udp.close()
        self.tunnel.close()

    def _raw_traffic(self, public_ip: IPv4Address) -> PeerTraffic:
        index = self._builder.index_of(public_ip)
        return PeerTraffic(*(self._engine.peer_counters(index) if index is not None else (0, 0, 0, 0)))
