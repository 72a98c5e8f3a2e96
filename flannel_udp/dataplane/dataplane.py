"""The dataplane as one object: opened once, then tables in and counters out."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any, NamedTuple

from flannel_udp._fastpath.engine import Engine
from flannel_udp._fastpath.routes import OWN, RouteTable
from flannel_udp.dataplane.offload import enable_on_socket, enable_on_tunnel
from flannel_udp.dataplane.table import TableBuilder
from flannel_udp.dataplane.tunnel import VNET_HEADER_BYTES, adopt_tunnel, open_tunnel
from flannel_udp.dataplane.underlay import (
    SocketBuffers,
    check_underlay,
    granted_buffers,
    open_icmp,
    open_underlay,
)
from flannel_udp.dataplane.worker import Worker
from flannel_udp.model import Peer
from flannel_udp.options import DataplaneOptions, Offload

QUIET_POINT_POLL_S = 0.01
DSCP_INHERIT = -1


def count_workers(options: DataplaneOptions) -> int:
    """Return how many workers the options mean."""
    return options.workers or len(os.sched_getaffinity(0))


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


@dataclass(frozen=True, slots=True)
class Adopted:
    """The descriptors of a dataplane that another process has opened, and the offloads that are on there.

    ``None`` for the offloads means that this is not known; nobody else may use the descriptors then.
    """

    queues: Sequence[int]
    sockets: Sequence[int]
    icmp: int
    granted: Offload | None = None


class Dataplane:
    """flannel0, the underlay sockets and the engines between them, one of each a worker.

    With `adopted` nothing is opened: those descriptors are used, and are the dataplane's from now on. `dscp` is the
    outer header's, -1 for the inner one's. `on_fault(errno)` is called in a data thread when flannel0 is lost. Raises
    FlannelError where something cannot be opened; nothing stays open then.
    """

    def __init__(
        self,
        address: IPv4Address,
        port: int,
        options: DataplaneOptions,
        on_fault: Callable[[int], None],
        *,
        dscp: int = DSCP_INHERIT,
        adopted: Adopted | None = None,
    ) -> None:
        n_workers = count_workers(options)
        with ExitStack() as opened:
            if adopted is None:
                self.tunnel = open_tunnel(n_workers)
                opened.callback(self.tunnel.close)
                self._icmp = opened.enter_context(open_icmp())
                self._sockets = [
                    opened.enter_context(open_underlay(address, port, shared=n_workers > 1)) for _ in range(n_workers)
                ]
            else:
                # All of them are ours before the first one is looked at, so that none is left open.
                self._icmp = opened.enter_context(socket.socket(fileno=adopted.icmp))
                self._sockets = [opened.enter_context(socket.socket(fileno=fd)) for fd in adopted.sockets]
                self.tunnel = adopt_tunnel(adopted.queues)
                opened.callback(self.tunnel.close)
                check_underlay(self._sockets, address, port)
            known = adopted.granted if adopted else None
            granted = known or enable_on_tunnel(self.tunnel.filenos()[0], options.offload)
            self._engines: list[Engine] = []
            self._workers: list[Worker] = []
            for queue, udp in zip(self.tunnel.filenos(), self._sockets, strict=True):
                granted = known or enable_on_socket(udp, granted)
                self.socket_buffers: SocketBuffers = granted_buffers(udp)  # the same for every worker
                engine = Engine(
                    queue,
                    udp.fileno(),
                    self._icmp.fileno(),
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
        self._baseline: dict[IPv4Address, PeerTraffic] = {}
        self._table: RouteTable | None = None
        self._index: Mapping[IPv4Address, int] = {}
        self._peers: dict[IPv4Network, Peer] = {}
        self._running: set[int] = set()
        self._opened.callback(self.stop)

    def start(self) -> None:
        """Start to move packets; until a table is published all are dropped, and counted. Running workers run on."""
        for number in range(self.workers):
            self.start_worker(number)

    def stop(self) -> None:
        """Stop moving packets, and return once all that were read are sent."""
        for number in range(self.workers):
            self.stop_worker(number)

    def start_worker(self, number: int) -> None:
        """Start one worker, unless it runs."""
        if number not in self._running:
            self._running.add(number)
            self._workers[number].start()

    def stop_worker(self, number: int) -> None:
        """Stop one worker if it runs, and return once all that it had read is sent; packets wait in the kernel."""
        if number in self._running:
            self._workers[number].ask_to_stop()
            self._workers[number].join()
            self._running.remove(number)

    def descriptors(self) -> Adopted:
        """Return what another process would adopt; the descriptors stay ours."""
        return Adopted(
            self.tunnel.filenos(), [udp.fileno() for udp in self._sockets], self._icmp.fileno(), self.offload
        )

    async def publish(self, own: IPv4Network | None, peers: Sequence[Peer]) -> None:
        """Put a table for our subnet and these peers in force, and return once the old one is let go.

        The table is built outside the data thread, which never waits: it finds the new pointer at its next batch.
        """
        built = await asyncio.to_thread(self._builder.build, own, peers)
        # A peer's index may have been another's: its counting starts from what is there.
        self._baseline = {
            public_ip: self._raw_traffic(index) if public_ip in built.fresh else self._baseline[public_ip]
            for public_ip, index in built.indexes.items()
        }
        for engine in self._engines:
            engine.publish(built.table)
        self._table, self._index = built.table, built.indexes
        self._peers = {peer.subnet: peer for peer in peers}
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
        return [
            (peer, self._raw_traffic(self._index[peer.public_ip]).since(self._baseline[peer.public_ip]))
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

    def peers(self) -> list[Peer]:
        """Return the peers of the table in force."""
        return list(self._peers.values())

    def close(self) -> None:
        """Stop the data threads and close everything; the kernel removes flannel0."""
        self._opened.close()

    def _raw_traffic(self, index: int) -> PeerTraffic:
        return PeerTraffic(*map(sum, zip(*(engine.peer_counters(index) for engine in self._engines), strict=True)))


def _add(total: dict[str, Any], more: dict[str, Any]) -> None:
    for name, value in more.items():
        if isinstance(value, dict):
            _add(total.setdefault(name, {}), value)
        else:
            total[name] = total.get(name, 0) + value
