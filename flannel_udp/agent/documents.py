"""What the agent says of itself: the documents of the control socket, put together from the rooms' own facts."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping
from ipaddress import IPv4Address, IPv4Network

from flannel_udp import __version__
from flannel_udp.admin.shapes import (
    BackendFacts,
    Counters,
    LeaseFacts,
    NetDevice,
    PeerRow,
    Route,
    SocketBuffers,
    Status,
    WorkerPackets,
)
from flannel_udp.agent.state import AgentState, Rooms
from flannel_udp.backend.protocol import NetworkFacts
from flannel_udp.dataplane.drops import DROP_REASONS
from flannel_udp.host.capabilities import Kept
from flannel_udp.model import Interface, Peer, PeerTraffic
from flannel_udp.options import Options

PEERS_PART = 64
"""Peers of which the rows are made at a time: about half a millisecond of work."""
PROBLEMS_MAX = 10
"""So many faults of single peers are named in the status; `peers` has them all."""


class Documents:
    """Answers for the agent whose state it is: `StatusSource` and `MetricsSource`."""

    def __init__(self, options: Options, kept: Kept, state: AgentState) -> None:
        self._options = options
        self._kept = kept
        self._state = state
        self._started_s = time.monotonic()

    @property
    def drop_reasons(self) -> tuple[str, ...]:
        """Every reason that the counters may name."""
        return DROP_REASONS

    def status(self) -> Status:
        """Return the agent's state at this moment."""
        rooms, external, lease = self._state.rooms, self._state.interface, self._state.lease
        facts = rooms.network.facts() if rooms else NetworkFacts()
        network = rooms.config.overlay if rooms else None
        return Status(
            version=__version__,
            pid=os.getpid(),
            uptime_s=round(time.monotonic() - self._started_s, 3),
            state=self._state.phrase,
            ready=self._state.ready,
            problems=[*facts.problems, *_problems(facts.faults)],
            registry=self._registry(),
            network=str(network) if network else None,
            subnet=str(lease.subnet.v4) if lease else None,
            public_ip=str(external.public_ip) if external else None,
            interface=_interface(external),
            tunnel=_tunnel(rooms, facts) if rooms else None,
            backend=_backend(rooms, facts) if rooms else None,
            lease=_lease(rooms) if rooms else None,
            peers=rooms.sync.status.peers if rooms else 0,
            revision=rooms.sync.status.revision if rooms else None,
            offload=None if facts.offload is None else list(facts.offload),
            workers=None if facts.worker_packets is None else len(facts.worker_packets),
            worker_packets=_worker_packets(facts),
            socket_buffers=_socket_buffers(facts),
            host_repairs=rooms.upkeep.repairs if rooms else None,
            capabilities=self._kept.names,
            counters=_counters(facts),
        )

    async def peers(self) -> AsyncIterator[list[PeerRow]]:
        """Yield one row a peer, in the order of their subnets, in parts that hold nobody up."""
        rooms = self._state.rooms
        if rooms is None:
            return
        peers = await asyncio.to_thread(rooms.network.peers)
        faults = rooms.network.facts().faults
        for first in range(0, len(peers), PEERS_PART):
            part = peers[first : first + PEERS_PART]
            yield [_row(peer, rooms.network.traffic(peer), faults.get(peer.subnet)) for peer in part]

    def route(self, address: IPv4Address) -> Route:
        """Return where a packet for `address` would go, and why."""
        text, rooms, external = str(address), self._state.rooms, self._state.interface
        if rooms is None or external is None:
            return Route(address=text, verdict="no route", reason=f"the agent is {self._state.phrase}")
        network = rooms.config.overlay
        if address not in network:
            reason = f"outside the overlay network {network}: the host routes it elsewhere"
            return Route(address=text, verdict="outside network", reason=reason)
        lease, answer, facts = self._state.lease, rooms.network.route(address), rooms.network.facts()
        if answer.own and lease:
            reason = "in this host's own subnet: the host delivers it itself"
            return Route(address=text, verdict="own subnet", subnet=str(lease.subnet.v4), reason=reason)
        if answer.peer is None:
            return Route(address=text, verdict="no route", reason="no lease in the registry covers it")
        subnet = str(answer.peer.subnet)
        if answer.fault is not None:
            return Route(address=text, verdict="no route", subnet=subnet, reason=answer.fault)
        route = Route(
            address=text,
            verdict="peer",
            subnet=subnet,
            public_ip=str(answer.peer.public_ip),
            interface=external.name,
            reason="the longest prefix in the registry that covers it",
        )
        if facts.port is not None:
            route["port"] = facts.port
        if facts.device is not None:
            route["tunnel"] = facts.device
        return route

    def _registry(self) -> str:
        if self._options.kube.subnet_mgr:
            return "kubernetes"
        if self._options.registry != "etcd":
            return self._options.registry
        return f"etcd {','.join(self._options.etcd.endpoints)} {self._options.etcd.prefix}"


def _problems(faults: Mapping[IPv4Network, str]) -> list[str]:
    named = [fault for _, fault in sorted(faults.items())[:PROBLEMS_MAX]]
    more = len(faults) - len(named)
    return [*named, f"and {more} more: see flannel-udp peers"] if more else named


def _backend(rooms: Rooms, facts: NetworkFacts) -> BackendFacts:
    backend = BackendFacts(type=rooms.backend.type)
    if facts.port is not None:
        backend["port"] = facts.port
    return backend


def _interface(external: Interface | None) -> NetDevice | None:
    if external is None:
        return None
    return {"name": external.name, "address": str(external.address), "mtu": external.mtu}


def _tunnel(rooms: Rooms, facts: NetworkFacts) -> NetDevice | None:
    lease = rooms.keeper.lease
    if lease is None or facts.device is None:
        return None
    return {"name": facts.device, "address": f"{lease.subnet.v4.network_address}/32", "mtu": rooms.network.mtu}


def _lease(rooms: Rooms) -> LeaseFacts | None:
    lease, left_s = rooms.keeper.lease, rooms.keeper.left_s
    if lease is None:
        return None
    return {
        "key": lease.entry.key,
        "expires_in_s": None if left_s is None else round(left_s, 1),
        "reserved": lease.entry.reserved,
    }


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
    }


def _row(peer: Peer, traffic: PeerTraffic | None, fault: str | None) -> PeerRow:
    return PeerRow(
        subnet=str(peer.subnet),
        public_ip=str(peer.public_ip),
        packets_out=None if traffic is None else traffic.packets_out,
        bytes_out=None if traffic is None else traffic.bytes_out,
        packets_in=None if traffic is None else traffic.packets_in,
        bytes_in=None if traffic is None else traffic.bytes_in,
        problem=fault,
    )
