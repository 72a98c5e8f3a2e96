"""The dataplane as one object: opened once, then tables in and counters out."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any, NamedTuple

from flannel_udp._fastpath.engine import Engine
from flannel_udp._fastpath.routes import OWN, RouteTable
from flannel_udp.dataplane.offload import enable_on_socket, enable_on_tunnel
from flannel_udp.dataplane.table import Route, TableBuilder
from flannel_udp.dataplane.tunnel import VNET_HEADER_BYTES, open_tunnel
from flannel_udp.dataplane.underlay import SocketBuffers, granted_buffers, open_icmp, open_underlay
from flannel_udp.dataplane.worker import Worker
from flannel_udp.model import Delta, Peer
from flannel_udp.options import DataplaneOptions, Offload

QUIET_POINT_POLL_S = 0.01
DSCP_INHERIT = -1


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
    """flannel0, the underlay sockets and the engines between them, one of each a worker.

    `dscp` is the outer header's, -1 for the inner one's. `on_fault(errno)` is called in a data thread when flannel0 is
    lost. Raises FlannelError where something cannot be opened; nothing stays open then.
    """

    def __init__(
        self,
        address: IPv4Address,
        port: int,
        options: DataplaneOptions,
        on_fault: Callable[[int], None],
        dscp: int = DSCP_INHERIT,
    ) -> None:
        n_workers = options.workers or len(os.sched_getaffinity(0))
        with ExitStack() as opened:
            self.tunnel = open_tunnel(n_workers)
            opened.callback(self.tunnel.close)
            granted = enable_on_tunnel(self.tunnel.filenos()[0], options.offload)
            icmp = opened.enter_context(open_icmp())
            self._engines: list[Engine] = []
            self._workers: list[Worker] = []
            for queue in self.tunnel.filenos():
                udp = opened.enter_context(open_underlay(address, port, shared=n_workers > 1))
                granted = enable_on_socket(udp, granted)
                self.socket_buffers: SocketBuffers = granted_buffers(udp)  # the same for every worker
                engine = Engine(
                    queue,
                    udp.fileno(),
                    icmp.fileno(),
                    port,
                    source_check=options.source_check,
                    vnet_bytes=VNET_HEADER_BYTES,
                    dscp=dscp,
                    segment=granted.udp_segment,
                    join_tcp=granted.join_tcp,
                    join_udp=granted.join_udp,
                )
                opened.callback(engine.close)
                self._engines.append(engine)
                self._workers.append(Worker(engine, options.busy_poll_us, on_fault))
            self._opened = opened.pop_all()
        self._granted = granted
        self._builder = TableBuilder()
        self._baseline: dict[int, PeerTraffic] = {}  # of an index that was another peer's: what that one had
        self._table: RouteTable | None = None
        self._routes: Mapping[IPv4Network, Route] = {}

    def start(self) -> None:
        """Start to move packets; until a table is published all are dropped, and counted."""
        for worker in self._workers:
            worker.start()
            self._opened.callback(worker.stop)

    async def publish(self, own: IPv4Network | None, deltas: Sequence[Delta], *, whole: bool) -> None:
        """Put a table for our subnet in force, and return once the old one is let go.

        The peers are those of the last table after `deltas`; with `whole` there were none before. The table is built
        outside the data thread, which never waits: it finds the new pointer at its next batch.
        """
        built = await asyncio.to_thread(self._builder.build, own, deltas, whole=whole)
        for index in built.reused:
            self._baseline[index] = self._raw_traffic(index)
        for engine in self._engines:
            engine.publish(built.table)
        self._table, self._routes = built.table, built.routes
        while sum(engine.reclaim() for engine in self._engines):
            await asyncio.sleep(QUIET_POINT_POLL_S)

    @property
    def offload(self) -> Offload:
        """The offloads in use: granted at start, and not lost since."""
        return replace(self._granted, udp_segment=all(engine.segments for engine in self._engines))

    @property
    def workers(self) -> int:
        """How many data threads there are."""
        return len(self._workers)

    def counters(self) -> dict[str, Any]:
        """Return the counters of all engines together, as `Engine.counters` does."""
        total: dict[str, Any] = {}
        for engine in self._engines:
            _add(total, engine.counters())
        return total

    def peer_traffic(self) -> list[tuple[Peer, PeerTraffic]]:
        """Return every route with its peer's traffic since the peer appeared."""
        return [(peer, self._traffic(index)) for _, (peer, index) in sorted(self._routes.items())]

    def route(self, address: IPv4Address) -> RouteAnswer:
        """Ask the table in force for an address's next hop."""
        hop = 0 if self._table is None else self._table.lookup(int(address))
        if hop == OWN:
            return RouteAnswer(peer=None, own=True)
        for prefix_len in range(32, 0, -1) if hop else ():
            route = self._routes.get(IPv4Network((address, prefix_len), strict=False))
            if route is not None:
                return RouteAnswer(peer=route.peer, own=False)
        return RouteAnswer(peer=None, own=False)

    def close(self) -> None:
        """Stop the data threads and close everything; the kernel removes flannel0."""
        self._opened.close()

    def _traffic(self, index: int) -> PeerTraffic:
        traffic = self._raw_traffic(index)
        return traffic.since(self._baseline[index]) if index in self._baseline else traffic

    def _raw_traffic(self, index: int) -> PeerTraffic:
        return PeerTraffic(*map(sum, zip(*(engine.peer_counters(index) for engine in self._engines), strict=True)))


def _add(total: dict[str, Any], more: dict[str, Any]) -> None:
    for name, value in more.items():
        if isinstance(value, dict):
            _add(total.setdefault(name, {}), value)
        else:
            total[name] = total.get(name, 0) + value
