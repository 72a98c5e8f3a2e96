"""The dataplane as one object: opened once, then tables in and counters out."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any, NamedTuple

from flannel_udp._fastpath.engine import Engine, watch
from flannel_udp._fastpath.routes import OWN, RouteTable
from flannel_udp.dataplane.adopted import Adopted, descriptor_names
from flannel_udp.dataplane.lanes import close_lanes, open_lanes
from flannel_udp.dataplane.offload import enable_on_socket, enable_on_tunnel, hands_over_super_packets
from flannel_udp.dataplane.table import TableBuilder
from flannel_udp.dataplane.tunnel import VNET_HEADER_BYTES, Tunnel, adopt_tunnel, open_tunnel
from flannel_udp.dataplane.underlay import (
    SocketBuffers,
    check_underlay,
    close_sockets,
    granted_buffers,
    open_icmp,
    open_sockets,
)
from flannel_udp.dataplane.worker import Worker
from flannel_udp.errors import FlannelError
from flannel_udp.model import Delta, Peer, PeerTraffic, RouteAnswer, longest_match
from flannel_udp.options import DataplaneOptions, Offload

QUIET_POINT_POLL_S = 0.01
DSCP_INHERIT = -1


def count_workers(options: DataplaneOptions) -> int:
    """Return how many workers the options mean."""
    return options.workers or len(os.sched_getaffinity(0))


class WorkerPackets(NamedTuple):
    """Inner packets that one worker carried."""

    packets_out: int
    packets_in: int


class Dataplane:
    """flannel0, the underlay sockets and the engines between them, one of each a worker.

    The device and the sockets can be replaced; the engines, the table in force and the counters live on. With `adopted`
    nothing is opened: those descriptors are used, and are the dataplane's from now on. `dscp` is the outer header's, -1
    for the inner one's. `on_fault()` is called, in any thread, when flannel0 is lost or has to be looked at.
    Raises FlannelError where something cannot be opened; nothing stays open then.
    """

    def __init__(
        self,
        address: IPv4Address,
        port: int,
        options: DataplaneOptions,
        on_fault: Callable[[], object],
        *,
        dscp: int = 0,
        adopted: Adopted | None = None,
    ) -> None:
        self._options, self._port, self._on_fault = options, port, on_fault
        self._lent = False  # another process is about to read from the descriptors
        self._replaced = 0  # how often descriptors were opened anew
        with ExitStack() as opened:
            if adopted is None:
                self._open(address, opened)
            else:
                self._adopt(adopted, address, opened)
            # Nothing is switched while another process uses the descriptors.
            self._granted = adopted.granted if adopted and adopted.granted else self._enable(self.tunnel, self._sockets)
            self._engines: list[Engine] = []
            self._lanes = open_lanes(self._sockets, udp_gro=self._granted.udp_gro)
            opened.callback(self._close_lanes)
            for queue, udp, lanes in zip(self.tunnel.filenos(), self._sockets, self._lanes, strict=True):
                engine = Engine(
                    queue,
                    udp.fileno(),
                    self._icmp.fileno(),
                    port,
                    source_check=options.source_check,
                    vnet_bytes=VNET_HEADER_BYTES,
                    dscp=dscp,
                    segment=self._granted.udp_segment,
                    join_tcp=self._granted.join_tcp,
                    join_udp=self._granted.join_udp,
                    lanes=[lane.fileno() for lane in lanes],
                )
                opened.callback(engine.close)
                self._engines.append(engine)
            self._opened = opened.pop_all()
        self._workers = [Worker(engine, options.busy_poll_us) for engine in self._engines]
        self._builder = TableBuilder(self._note_baseline)
        self._baseline: dict[int, PeerTraffic] = {}  # of an index that was another peer's: what that one had
        self._table: RouteTable | None = None
        self._running: set[int] = set()
        self._opened.callback(self.stop)

    def _open(self, address: IPv4Address, opened: ExitStack) -> None:
        n_workers = count_workers(self._options)
        self.tunnel = open_tunnel(n_workers)
        opened.callback(self._close_tunnel)
        self._sockets = open_sockets(address, self._port, n_workers)
        opened.callback(self._close_sockets)
        self._icmp = opened.enter_context(open_icmp())

    def _adopt(self, adopted: Adopted, address: IPv4Address, opened: ExitStack) -> None:
        # All of them are ours before the first one is looked at, so that none is left open.
        self._icmp = opened.enter_context(socket.socket(fileno=adopted.icmp))
        self._sockets = [socket.socket(fileno=fd) for fd in adopted.sockets]
        opened.callback(self._close_sockets)
        self.tunnel = adopt_tunnel(adopted.queues)
        opened.callback(self._close_tunnel)
        check_underlay(self._sockets, address, self._port)

    def start(self) -> None:
        """Start to move packets; until a table is published all are dropped, and counted. Running workers run on."""
        for number in range(self.workers):
            self.start_worker(number)

    def stop(self) -> None:
        """Stop moving packets, and return once all that were read are sent."""
        self._stop(range(self.workers))

    def start_worker(self, number: int) -> None:
        """Start one worker, unless it runs."""
        if number not in self._running:
            self._workers[number].start(self._on_fault)
            self._running.add(number)

    def stop_worker(self, number: int) -> None:
        """Stop one worker if it runs, and return once all that it had read is sent; packets wait in the kernel."""
        self._stop([number])

    def _stop(self, numbers: Iterable[int]) -> list[int]:
        """Stop the workers that run among these, and return which they were."""
        stopping = [number for number in numbers if number in self._running]
        self._running.difference_update(stopping)  # first: nobody probes a worker that will not answer
        for number in stopping:
            self._workers[number].ask_to_stop()
        for number in stopping:
            self._workers[number].join()
        return stopping

    def descriptors(self) -> Mapping[str, int]:
        """Return what another process would adopt, by name; the descriptors stay ours."""
        return descriptor_names(self.tunnel.filenos(), [udp.fileno() for udp in self._sockets], self._icmp.fileno())

    def state(self) -> Mapping[str, Any]:
        """Return what it would have to know of them: the offloads that were granted."""
        return {"granted": self._granted.names()}

    @property
    def generation(self) -> tuple[int, bool]:
        """How often descriptors were opened anew, and whether flannel0 is lost."""
        return self._replaced, self.tunnel_lost

    def lend(self) -> None:
        """Keep the descriptors the ones they are until `take_back`: another process is about to read from them."""
        self._lent = True

    def _close_tunnel(self) -> None:
        self.tunnel.close()

    def _close_sockets(self) -> None:
        close_sockets(self._sockets)

    def _close_lanes(self) -> None:
        close_lanes(self._lanes)

    @property
    def tunnel_lost(self) -> bool:
        """Whether reading from flannel0 has failed for good: it was deleted, or broke."""
        return any(engine.tun_errno for engine in self._engines)

    def reopen_tunnel(self) -> None:
        """Open a device in place of flannel0, which then carries packets again once it is configured.

        Packets rest for up to 0.1 s. Raises FlannelError where none can be opened, or somebody has deleted it again;
        nothing has changed then.
        """
        self._refuse_if_lent()
        former, tunnel = self.tunnel, open_tunnel(self.workers)
        self._swap(tunnel, self._sockets, self._lanes, tunnel.close)
        former.close()

    def rebind(self, address: IPv4Address) -> None:
        """Send from this address of the external interface, and receive at it; likewise."""
        self._refuse_if_lent()
        former, former_lanes = self._sockets, self._lanes
        sockets = open_sockets(address, self._port, self.workers)
        lanes = open_lanes(sockets, udp_gro=self._granted.udp_gro)

        def close_new() -> None:
            close_lanes(lanes)
            close_sockets(sockets)

        self._swap(self.tunnel, sockets, lanes, close_new)
        close_lanes(former_lanes)
        close_sockets(former)

    def take_back(self) -> None:
        """Go on with what was lent."""
        self._lent = False
        self.start()
        self._on_fault()  # what was refused meanwhile is due

    def _swap(
        self,
        tunnel: Tunnel,
        sockets: list[socket.socket],
        lanes: list[list[socket.socket]],
        close_new: Callable[[], None],
    ) -> None:
        """Have the engines work on these: the device, or the sockets with their lanes, are new, the others are in use.

        Raises FlannelError; nothing has changed then, and `close_new` was called.
        """
        try:
            granted = self._enable(tunnel, sockets)
            watched = [watch(queue, udp.fileno()) for queue, udp in zip(tunnel.filenos(), sockets, strict=True)]
        except OSError as failed:  # somebody has deleted the device meanwhile, or no descriptor is left
            close_new()
            raise FlannelError(f"{tunnel.name} and its sockets cannot be used: {failed.strerror}") from failed
        stopped = self._stop(range(self.workers))
        for engine, queue, udp, others, epoll in zip(
            self._engines, tunnel.filenos(), sockets, lanes, watched, strict=True
        ):
            rungs = (granted.udp_segment, granted.join_tcp, granted.join_udp)
            engine.attach(queue, udp.fileno(), *rungs, [lane.fileno() for lane in others], epoll)
        self.tunnel, self._sockets, self._lanes, self._granted = tunnel, sockets, lanes, granted
        self._replaced += 1
        for number in stopped:
            self.start_worker(number)

    def _refuse_if_lent(self) -> None:
        if self._lent:
            raise FlannelError(f"another agent is taking over {self.tunnel.name}: nothing is opened anew now")

    def _enable(self, tunnel: Tunnel, sockets: Iterable[socket.socket]) -> Offload:
        """Switch on what is wanted and possible on the device and the sockets; return what is on."""
        granted = enable_on_tunnel(tunnel.filenos()[0], self._options.offload)
        for udp in sockets:
            granted = enable_on_socket(udp, granted)
        return granted

    @property
    def socket_buffers(self) -> SocketBuffers:
        """What the kernel granted each UDP socket."""
        return granted_buffers(self._sockets[0])

    async def publish(self, own: IPv4Network | None, deltas: Sequence[Delta], *, whole: bool) -> None:
        """Put a table for our subnet in force, and return once the old one is let go.

        The peers are those of the last table after `deltas`; with `whole` there were none before. The table is built
        outside the data thread, which never waits: it finds the new pointer at its next batch.
        """
        await self._old_table_let_go()  # a publish that was cancelled may have left it with the engines
        table = await asyncio.to_thread(self._builder.build, own, deltas, whole=whole)
        for engine in self._engines:
            engine.publish(table)
        self._table = table
        await self._old_table_let_go()

    async def _old_table_let_go(self) -> None:
        while sum(engine.reclaim() for engine in self._engines):
            await asyncio.sleep(QUIET_POINT_POLL_S)

    def forward_until(self, boottime_s: float | None) -> None:
        """Forward nothing from that time of CLOCK_BOOTTIME on, ``None``: there is no such time.

        The data threads keep to it by themselves, whatever becomes of the control plane.
        """
        boottime_ns = None if boottime_s is None else round(boottime_s * 1e9)
        for engine in self._engines:
            engine.forward_until(boottime_ns)

    def forget_path_mtus(self) -> None:
        """Ask for the path MTU to each peer anew: the underlay's routes or MTUs may have changed."""
        for engine in self._engines:
            engine.forget_path_mtus()

    @property
    def offload(self) -> Offload:
        """The offloads in use: granted, not refused when they were used last, and not switched off by ethtool since."""
        return replace(
            self._granted,
            tso=self._granted.tso and hands_over_super_packets(self.tunnel.name),
            udp_segment=all(engine.segments for engine in self._engines),
            join_tcp=all(engine.joins_tcp for engine in self._engines),
            join_udp=all(engine.joins_udp for engine in self._engines),
        )

    @property
    def workers(self) -> int:
        """How many data threads there are."""
        return len(self._workers)

    async def come_round(self) -> None:
        """Return once every data thread that is to run has answered; one that hangs never does."""
        probes = [self._workers[number].probe() for number in list(self._running)]
        await asyncio.gather(*map(asyncio.wrap_future, probes))

    def counters(self) -> dict[str, Any]:
        """Return the counters of all engines together, as `Engine.counters` does."""
        total: dict[str, Any] = {}
        for engine in self._engines:
            _add(total, engine.counters())
        return total

    def worker_packets(self) -> list[WorkerPackets]:
        """Return what each worker carried. A flow stays on one worker, so a busy one shows here."""
        counted = [engine.counters() for engine in self._engines]
        return [WorkerPackets(counters["out"]["packets"], counters["in"]["packets"]) for counters in counted]

    def sorted_peers(self) -> list[Peer]:
        """Return the peers of the table in force, in the order of their subnets; takes long, so ask in a thread."""
        return self._builder.sorted_peers()

    def traffic(self, peer: Peer) -> PeerTraffic:
        """Return a peer's traffic since it appeared."""
        index = self._builder.index_of(peer.public_ip)
        if index is None:  # it went just now
            return PeerTraffic(0, 0, 0, 0)
        traffic = self._raw_traffic(index)
        return traffic.since(self._baseline[index]) if index in self._baseline else traffic

    def route(self, address: IPv4Address) -> RouteAnswer:
        """Ask the table in force for an address's next hop."""
        hop = 0 if self._table is None else self._table.lookup(int(address))
        if hop == OWN:
            return RouteAnswer(peer=None, own=True)
        return RouteAnswer(peer=longest_match(self._builder.peers, address) if hop else None, own=False)

    def peers(self) -> list[Peer]:
        """Return the peers of the table in force."""
        return list(self._builder.peers.copy().values())

    def close(self) -> None:
        """Stop the data threads and close everything; the kernel removes flannel0."""
        self._opened.close()

    def _note_baseline(self, index: int) -> None:
        self._baseline[index] = self._raw_traffic(index)

    def _raw_traffic(self, index: int) -> PeerTraffic:
        return PeerTraffic(*map(sum, zip(*(engine.peer_counters(index) for engine in self._engines), strict=True)))


def _add(total: dict[str, Any], more: dict[str, Any]) -> None:
    for name, value in more.items():
        if isinstance(value, dict):
            _add(total.setdefault(name, {}), value)
        else:
            total[name] = total.get(name, 0) + value
