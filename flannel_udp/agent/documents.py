"""What the agent says of itself: the documents of the control socket, put together from the rooms' own facts."""

from __future__ import annotations

import asyncio
import heapq
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from itertools import chain, islice
from operator import itemgetter

from flannel_udp import __version__
from flannel_udp.admin.figures import (
    Figures,
    LatenessFigures,
    LeaseFigures,
    PeerFigures,
    RegistryFigures,
    Requests,
)
from flannel_udp.admin.shapes import (
    BackendFacts,
    CloudRoutes,
    Counters,
    DeviceCounters,
    DroppedRow,
    Echo,
    Event,
    FamilyFacts,
    LeaseFacts,
    NetDevice,
    PeerRow,
    Route,
    RouteRow,
    SocketBuffers,
    Status,
    WorkerPackets,
)
from flannel_udp.admin.trace_request import Coming, TraceRequest
from flannel_udp.admin.trace_shapes import Trace, TraceArrival
from flannel_udp.agent.arrival import trace_arrival
from flannel_udp.agent.capturing import Capturing
from flannel_udp.agent.cloud_routes import list_cloud_routes
from flannel_udp.agent.prober import ALL_S
from flannel_udp.agent.routes import PEERS_PART, find_route, list_routes, name_datapath, name_device
from flannel_udp.agent.state import AgentState, Rooms
from flannel_udp.agent.tracing import trace_packet
from flannel_udp.backend.protocol import NetworkFacts
from flannel_udp.dataplane.drop_log import describe
from flannel_udp.dataplane.drops import DROP_REASONS
from flannel_udp.host.capabilities import Kept
from flannel_udp.host.echo import EchoAnswer
from flannel_udp.host.family import family_of
from flannel_udp.model import (
    Address,
    CaptureWish,
    Degradation,
    DroppedPacket,
    Interface,
    Peer,
    PeerTraffic,
    Prefix,
    prefix_order,
)
from flannel_udp.options import Options
from flannel_udp.registry.observed import RegistryCounts

PROBLEMS_MAX = 10
"""So many faults of single peers are named in the status; `peers` has them all."""


class Documents:
    """Answers for the agent whose state it is: `StatusSource` and `MetricsSource`."""

    def __init__(self, options: Options, kept: Kept, state: AgentState) -> None:
        self._options = options
        self._kept = kept
        self._state = state
        self._capturing = Capturing(state)
        self._started_s = time.monotonic()

    @property
    def drop_reasons(self) -> tuple[str, ...]:
        """Every reason that the counters may name."""
        return DROP_REASONS

    @property
    def registry(self) -> str:
        """Where the table of subnets is, for people."""
        if self._options.kube.subnet_mgr:
            return "kubernetes"
        if self._options.registry != "etcd":
            return self._options.registry
        return f"etcd {','.join(self._options.etcd.urls)} {self._options.etcd.prefix}"

    def status(self) -> Status:
        """Return the agent's state at this moment."""
        rooms, external, lease = self._state.rooms, self._state.interface, self._state.lease
        facts = rooms.network.facts() if rooms else NetworkFacts()
        degradations = [*self._state.conditions.degradations, *_degradations(facts)]
        return Status(
            version=__version__,
            pid=os.getpid(),
            uptime_s=round(time.monotonic() - self._started_s, 3),
            state=self._state.phrase,
            ready=self._state.ready,
            problems=[item.text for item in degradations],
            degraded=sorted({item.kind for item in degradations}),
            last_errors=self._state.errors.rows(),
            registry=self.registry,
            network=_overlay(rooms, 4),
            subnet=_text(lease.subnet.v4) if lease else None,
            public_ip=_public_ip(external, 4),
            ipv6_network=_overlay(rooms, 6),
            ipv6_subnet=_text(lease.subnet.v6) if lease else None,
            public_ipv6=_public_ip(external, 6),
            interface=_interface(external),
            tunnel=_tunnel(rooms, facts, 4) if rooms else None,
            ipv6_tunnel=_tunnel(rooms, facts, 6) if rooms else None,
            backend=_backend(rooms, facts) if rooms else None,
            lease=_lease(rooms) if rooms else None,
            peers=rooms.sync.status.peers if rooms else 0,
            revision=rooms.sync.status.revision if rooms else None,
            offload=None if facts.offload is None else list(facts.offload),
            workers=None if facts.worker_packets is None else len(facts.worker_packets),
            worker_packets=_worker_packets(facts),
            socket_buffers=_socket_buffers(facts),
            host_repairs={**rooms.upkeep.repairs, **rooms.subnet_file.repairs, **self._state.repairs}
            if rooms
            else None,
            peer_health=rooms.watch.health_counts(rooms.sync.status.peers) if rooms else None,
            narrow_paths=rooms.watch.n_narrow if rooms else 0,
            icmp_errors=rooms.watch.n_errors if rooms else 0,
            capabilities=self._kept.names,
            counters=_counters(facts),
            families=_families(rooms, facts, degradations) if rooms else {},
            last_dropped=_last_dropped(facts),
            devices=_devices(facts),
            kernel_drops=None if facts.kernel_drops is None else dict(facts.kernel_drops),
        )

    def figures(self) -> Figures:
        """Return what the agent counts of itself."""
        rooms, lateness = self._state.rooms, self._state.lateness
        registry = _registry_figures(self._state.asked, rooms.sync.status.last_event_s if rooms else None)
        late = LatenessFigures(lateness.buckets(), lateness.total_s)
        if rooms is None:
            return Figures(registry, late)
        counts, sync = rooms.keeper.counts, rooms.sync.status
        lease = LeaseFigures(counts.acquired, counts.lost, counts.renewals, counts.failures, counts.renewed_s)
        return Figures(registry, late, lease, sync.published, sync.publishing_s)

    async def busiest_peers(self) -> list[PeerFigures]:
        """Return the peers that most bytes were exchanged with, as many as the options say."""
        wanted, rooms = self._options.metrics_peers, self._state.rooms
        found: list[tuple[int, Peer, PeerTraffic]] = []
        if not wanted or rooms is None:
            return []
        known = rooms.watch.known_peers()
        for first in range(0, len(known), PEERS_PART):
            counted = ((peer, rooms.network.traffic(peer)) for peer in known[first : first + PEERS_PART])
            busy = ((each.bytes_out + each.bytes_in, peer, each) for peer, each in counted if each is not None)
            found = heapq.nlargest(wanted, chain(found, busy), key=itemgetter(0))
            await asyncio.sleep(0)
        return [
            PeerFigures(str(peer.subnet), str(peer.public_ip), *traffic[:4]) for total, peer, traffic in found if total
        ]

    async def peers(self) -> AsyncIterator[list[PeerRow]]:
        """Yield one row a peer, in the order of their subnets, in parts that hold nobody up."""
        if (rooms := self._state.rooms) is not None:
            parts, facts = await _peers_in_parts(rooms), rooms.network.facts()
            for part in parts:
                yield _rows(rooms, facts, part)
                await asyncio.sleep(0)

    async def peers_by_rate(self, n: int, by: str) -> AsyncIterator[list[PeerRow]]:
        """Yield so many rows if there are: those first with the highest rates, see `model.RATE_KEYS`."""
        if (rooms := self._state.rooms) is not None:
            await rooms.watch.count()
            peers = await rooms.watch.busiest(n, by)
            if len(peers) < n:
                known = {peer.public_ip for peer in peers}
                others = await asyncio.to_thread(rooms.network.peers)
                peers += islice((peer for peer in others if peer.public_ip not in known), n - len(peers))
            if peers:
                yield _rows(rooms, rooms.network.facts(), peers)

    async def probed_peers(self, within_s: float = ALL_S) -> AsyncIterator[list[PeerRow]]:
        """Likewise, after each peer was asked by an echo, as the answers come."""
        if (rooms := self._state.rooms) is not None:
            parts = await _peers_in_parts(rooms)
            answers = rooms.watch.ask_all([peer for part in parts for peer in part], within_s)
            for part in parts:
                echoes = [_echo(await anext(answers)) for _ in part]
                rows = _rows(rooms, rooms.network.facts(), part)
                yield [{**row, "echo": echo} for row, echo in zip(rows, echoes, strict=True)]

    async def route(self, address: Address) -> Route:
        """Return where a packet for `address` would go, and why; and what the kernel does with it."""
        return await find_route(self._state, address)

    def cloud_routes(self) -> CloudRoutes:
        """Return what is in the provider's route tables. Raises `FlannelError` where there are none."""
        return list_cloud_routes(self._state)

    async def trace(self, asked: TraceRequest) -> Trace:
        """Return what would become of a packet that is sent here."""
        return await trace_packet(self._state, asked)

    async def arrival(self, coming: Coming) -> TraceArrival:
        """Return what would become of one that comes from another host."""
        return await trace_arrival(self._state, self._options.dataplane.source_check, coming)

    def events(self) -> AsyncGenerator[list[Event], None]:
        """Yield what happens from now on, see `Feed.watch`."""
        return self._state.feed.watch(self.status)

    def capture(self, wish: CaptureWish, pid: int) -> AsyncGenerator[bytes, None]:
        """Yield packets as the data path sees them, see `Capturing.watch`."""
        return self._capturing.watch(wish, pid)

    async def routes(self) -> AsyncIterator[list[RouteRow]]:
        """Yield one row a subnet, in their order, in parts that hold nobody up."""
        async for part in list_routes(self._state):
            yield part


def _registry_figures(counts: RegistryCounts, last_event_s: float | None) -> RegistryFigures:
    return RegistryFigures(
        requests={request: Requests(each.count, each.failed, each.seconds) for request, each in counts.asked.items()},
        watching=counts.watching,
        outages=counts.outages,
        restarts=counts.restarts,
        snapshots=counts.snapshots,
        changes=counts.changes,
        last_event_s=last_event_s,
    )


def _degradations(facts: NetworkFacts) -> Iterator[Degradation]:
    for problem in facts.problems:
        yield Degradation("host", problem)
    named = sorted(facts.faults.items(), key=lambda item: prefix_order(item[0]))[:PROBLEMS_MAX]
    for subnet, fault in named:
        yield Degradation("peers", fault, subnet.version)
    if more := len(facts.faults) - len(named):
        yield Degradation("peers", f"and {more} more: see flannel-udp peers")


def _backend(rooms: Rooms, facts: NetworkFacts) -> BackendFacts:
    backend = BackendFacts(type=rooms.backend.type)
    if facts.port is not None:
        backend["port"] = facts.port
    if facts.direct is not None:
        backend["direct"] = facts.direct
    if facts.datapath is not None:
        backend["datapath"] = facts.datapath
    if facts.datapath_why is not None:
        backend["why"] = facts.datapath_why
    if isinstance(data := rooms.network.attrs.backend_data, Mapping):
        backend["data"] = dict(data)
    return backend


def _overlay(rooms: Rooms | None, version: int) -> str | None:
    overlay = None if rooms is None else rooms.config.of(version)
    return None if overlay is None else str(overlay.network)


def _public_ip(external: Interface | None, version: int) -> str | None:
    ends = None if external is None else external.of(version)
    return None if ends is None else str(ends.public_ip)


def _interface(external: Interface | None) -> NetDevice | None:
    if external is None:
        return None
    address = None if external.v4 is None else str(external.v4.address)
    found: NetDevice = {"name": external.name, "address": address, "mtu": external.mtu}
    if external.v6 is not None:
        found["ipv6_address"] = str(external.v6.address)
    return found


def _tunnel(rooms: Rooms, facts: NetworkFacts, version: int) -> NetDevice | None:
    lease, device = rooms.keeper.lease, name_device(facts, version)
    subnet = None if lease is None else lease.subnet.of(version)
    if subnet is None or device is None:
        return None
    return {
        "name": device,
        "address": f"{subnet.network_address}/{subnet.max_prefixlen}",
        "mtu": rooms.network.mtu,
    }


def _lease(rooms: Rooms) -> LeaseFacts | None:
    lease, left_s = rooms.keeper.lease, rooms.keeper.left_s
    if lease is None:
        return None
    facts: LeaseFacts = {
        "key": lease.entry.key,
        "expires_in_s": None if left_s is None else round(left_s, 1),
        "reserved": lease.entry.reserved,
    }
    if lease.entry.mark:
        facts["mark"] = f"{lease.entry.mark:08x}"
    return facts


def _worker_packets(facts: NetworkFacts) -> list[WorkerPackets] | None:
    if facts.worker_packets is None:
        return None
    return [WorkerPackets(packets_out=out, packets_in=in_) for out, in_ in facts.worker_packets]


def _socket_buffers(facts: NetworkFacts) -> SocketBuffers | None:
    if facts.socket_buffers is None:
        return None
    receive, send = facts.socket_buffers
    return {"receive_bytes": receive, "send_bytes": send}


def _counters(facts: NetworkFacts) -> Counters | None:
    counters = facts.counters
    if counters is None:
        return None
    return {
        "out": counters["out"],
        "in": counters["in"],
        "icmp": counters["icmp"],
        "system_calls": counters["system_calls"],
        "offloaded_in": counters["offloaded_in"],
    }


def _devices(facts: NetworkFacts) -> dict[str, DeviceCounters] | None:
    if facts.device_traffic is None:
        return None
    return {
        name: DeviceCounters(
            packets_out=carried.packets_out,
            bytes_out=carried.bytes_out,
            packets_in=carried.packets_in,
            bytes_in=carried.bytes_in,
        )
        for name, carried in facts.device_traffic.items()
    }


def _families(rooms: Rooms, facts: NetworkFacts, degradations: Sequence[Degradation]) -> dict[str, FamilyFacts]:
    peers, found = rooms.sync.status.peers_by_version, {}
    for version in rooms.config.versions:
        counters = facts.counters_by_version.get(version)
        found[family_of(version).name.lower()] = FamilyFacts(
            peers=peers.get(version, 0),
            degraded=sorted({item.kind for item in degradations if item.version == version}),
            counters=None
            if counters is None
            else {"out": counters["out"], "in": counters["in"], "icmp": counters["icmp"]},
        )
    return found


def _last_dropped(facts: NetworkFacts) -> dict[str, list[DroppedRow]] | None:
    if facts.last_dropped is None:
        return None
    now_s = time.time()
    return {reason: [_dropped(packet, now_s) for packet in packets] for reason, packets in facts.last_dropped.items()}


def _dropped(packet: DroppedPacket, now_s: float) -> DroppedRow:
    return DroppedRow(
        time=round(packet.time_s, 3),
        age_s=round(max(0.0, now_s - packet.time_s), 3),
        direction=packet.direction,
        outer_address=_text(packet.outer),
        source=_text(packet.source),
        destination=_text(packet.destination),
        protocol=packet.protocol,
        bytes=packet.n_bytes,
        summary=describe(packet),
    )


def _text(address: Address | Prefix | None) -> str | None:
    return None if address is None else str(address)


async def _peers_in_parts(rooms: Rooms) -> list[list[Peer]]:
    await rooms.watch.count()
    peers = await asyncio.to_thread(rooms.network.peers)
    return [peers[first : first + PEERS_PART] for first in range(0, len(peers), PEERS_PART)]


def _rows(rooms: Rooms, facts: NetworkFacts, peers: Sequence[Peer]) -> list[PeerRow]:
    return [_row(rooms, facts, peer) for peer in peers]


def _row(rooms: Rooms, facts: NetworkFacts, peer: Peer) -> PeerRow:
    traffic, known = rooms.network.traffic(peer), rooms.watch.facts(peer, facts)
    rate = None if traffic is None else rooms.watch.rate(peer)
    direct = rooms.network.is_direct(peer)
    row = PeerRow(
        subnet=str(peer.subnet),
        public_ip=str(peer.public_ip),
        packets_out=None if traffic is None else traffic.packets_out,
        bytes_out=None if traffic is None else traffic.bytes_out,
        packets_in=None if traffic is None else traffic.packets_in,
        bytes_in=None if traffic is None else traffic.bytes_in,
        health=known.health,
        heard_ago_s=known.heard_ago_s,
        error=known.error,
        error_ago_s=known.error_ago_s,
        path_mtu=known.path_mtu,
        problem=facts.faults.get(peer.subnet) or known.problem,
        host=rooms.sync.host_of(peer.subnet),
        carrier="direct" if direct else _carrier(rooms, facts),
        packets_out_s=None if rate is None else round(rate.packets_out, 1),
        bytes_out_s=None if rate is None else round(rate.bytes_out, 1),
        packets_in_s=None if rate is None else round(rate.packets_in, 1),
        bytes_in_s=None if rate is None else round(rate.bytes_in, 1),
        refused_out=None if traffic is None else traffic.refused_out,
    )
    if direct is not None:
        row["datapath"] = name_datapath(direct=direct)
    return row


def _carrier(rooms: Rooms, facts: NetworkFacts) -> str | None:
    if facts.counters is not None:
        return "userspace"
    return "kernel" if rooms.network.keeps_routes else None  # with alloc it is anybody


def _echo(answer: EchoAnswer) -> Echo:
    if answer.round_trip_s is not None:
        return Echo(answered=True, round_trip_ms=round(answer.round_trip_s * 1e3, 3), reason=None)
    return Echo(answered=False, round_trip_ms=None, reason=answer.refused or answer.unreachable or "no answer")
