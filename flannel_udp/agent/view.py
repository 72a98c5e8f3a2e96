"""What the agent says of itself: the documents of the control socket, put together from the rooms' own facts."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from ipaddress import IPv4Address

from flannel_udp import __version__
from flannel_udp.admin import notify
from flannel_udp.admin.shapes import (
    Counters,
    LeaseFacts,
    NetDevice,
    PeerRow,
    Route,
    SocketBuffers,
    Status,
    WorkerPackets,
)
from flannel_udp.control.lease import LeaseKeeper
from flannel_udp.control.synchroniser import Synchroniser
from flannel_udp.dataplane.dataplane import Dataplane, PeerTraffic
from flannel_udp.dataplane.drops import DROP_REASONS
from flannel_udp.host.capabilities import Kept
from flannel_udp.host.firewall.keeper import Firewall
from flannel_udp.host.upkeep import Upkeep
from flannel_udp.model import Interface, Peer
from flannel_udp.netconf.config import NetworkConfig
from flannel_udp.options import Options

PEERS_PART = 64
"""Peers of which the rows are made at a time: about half a millisecond of work."""


class AgentView:
    """Holds what exists so far, as the daemon brings it to life, and answers for it."""

    def __init__(self, options: Options, kept: Kept) -> None:
        self._options = options
        self._kept = kept
        self._started_s = time.monotonic()
        self.phase = self._details = "starting"
        self.serving = False
        """We hold a lease and forward for it."""
        self.upkeep: Upkeep | None = None
        self.interface: Interface | None = None
        self.config: NetworkConfig | None = None
        self.dataplane: Dataplane | None = None
        self.keeper: LeaseKeeper | None = None
        self.sync: Synchroniser | None = None
        self.firewall: Firewall | None = None

    @property
    def obstacle(self) -> str | None:
        """Why no traffic can pass just now, on the host's side."""
        return self.upkeep.obstacle if self.upkeep else None

    @property
    def ready(self) -> bool:
        """Whether packets of our subnet are carried, and the firewall rules that they need stand."""
        rules_stand = self.firewall is not None and self.firewall.stands
        return self.serving and rules_stand and self.obstacle is None

    @property
    def state(self) -> str:
        """What the agent is doing, as a phrase."""
        return self.obstacle or self.phase

    def enter(self, phase: str, details: str | None = None) -> None:
        """Note what the agent does from now on; systemd is told the same, or `details`."""
        self.phase, self._details = phase, details or phase
        self.tell()

    def tell(self) -> None:
        """Tell systemd what the agent is doing, or what is in the way."""
        notify.notify_status(self.obstacle or self._details)

    @property
    def drop_reasons(self) -> tuple[str, ...]:
        """Every reason that the counters may name."""
        return DROP_REASONS

    def status(self) -> Status:
        """Return the agent's state at this moment."""
        lease = self.keeper.lease if self.keeper else None
        network = self.config.v4.network if self.config and self.config.v4 else None
        return Status(
            version=__version__,
            pid=os.getpid(),
            uptime_s=round(time.monotonic() - self._started_s, 3),
            state=self.state,
            ready=self.ready,
            registry=self._registry(),
            network=str(network) if network else None,
            subnet=str(lease.subnet.v4) if lease else None,
            public_ip=str(self.interface.public_ip) if self.interface else None,
            interface=self._interface(),
            tunnel=self._tunnel(),
            backend={"type": self.config.backend.type, "port": self.config.backend.port} if self.config else None,
            lease=self._lease(),
            peers=self.sync.status.peers if self.sync else 0,
            revision=self.sync.status.revision if self.sync else None,
            offload=self.dataplane.offload.names() if self.dataplane else None,
            workers=self.dataplane.workers if self.dataplane else None,
            worker_packets=self._worker_packets(),
            socket_buffers=self._socket_buffers(),
            host_repairs=dict(self.upkeep.repairs) if self.upkeep else None,
            capabilities=self._kept.names,
            counters=self._counters(),
        )

    async def peers(self) -> AsyncIterator[list[PeerRow]]:
        """Yield one row a peer, in the order of their subnets, in parts that hold nobody up."""
        dataplane = self.dataplane
        peers = await asyncio.to_thread(dataplane.sorted_peers) if dataplane else []
        for first in range(0, len(peers), PEERS_PART):
            assert dataplane is not None  # noqa: S101 - or there were no peers
            yield [_row(peer, dataplane.traffic(peer)) for peer in peers[first : first + PEERS_PART]]

    def route(self, address: IPv4Address) -> Route:
        """Return where a packet for `address` would go, and why."""
        text = str(address)
        if self.config is None or self.config.v4 is None or self.dataplane is None or self.interface is None:
            return Route(address=text, verdict="no route", reason=f"the agent is {self.state}")
        network = self.config.v4.network
        if address not in network:
            reason = f"outside the overlay network {network}: the host routes it elsewhere"
            return Route(address=text, verdict="outside network", reason=reason)
        lease = self.keeper.lease if self.keeper else None
        answer = self.dataplane.route(address)
        if answer.own and lease:
            reason = "in this host's own subnet: the host delivers it itself"
            return Route(address=text, verdict="own subnet", subnet=str(lease.subnet.v4), reason=reason)
        if answer.peer is None:
            return Route(address=text, verdict="no route", reason="no lease in the registry covers it")
        return Route(
            address=text,
            verdict="peer",
            subnet=str(answer.peer.subnet),
            public_ip=str(answer.peer.public_ip),
            port=self.config.backend.port,
            interface=self.interface.name,
            tunnel=self.dataplane.tunnel.name,
            reason="the longest prefix in the registry that covers it",
        )

    def _registry(self) -> str:
        if self._options.kube.subnet_mgr:
            return "kubernetes"
        if self._options.registry != "etcd":
            return self._options.registry
        return f"etcd {','.join(self._options.etcd.endpoints)} {self._options.etcd.prefix}"

    def _interface(self) -> NetDevice | None:
        if self.interface is None:
            return None
        return {"name": self.interface.name, "address": str(self.interface.address), "mtu": self.interface.mtu}

    def _tunnel(self) -> NetDevice | None:
        lease = self.keeper.lease if self.keeper else None
        if self.dataplane is None or self.upkeep is None or lease is None:
            return None
        return {
            "name": self.dataplane.tunnel.name,
            "address": f"{lease.subnet.v4.network_address}/32",
            "mtu": self.upkeep.mtu,
        }

    def _lease(self) -> LeaseFacts | None:
        lease = self.keeper.lease if self.keeper else None
        if self.keeper is None or lease is None:
            return None
        left_s = self.keeper.left_s
        return {
            "key": lease.entry.key,
            "expires_in_s": None if left_s is None else round(left_s, 1),
            "reserved": lease.entry.reserved,
        }

    def _worker_packets(self) -> list[WorkerPackets] | None:
        if self.dataplane is None:
            return None
        return [WorkerPackets(packets_out=out, packets_in=in_) for out, in_ in self.dataplane.worker_packets()]

    def _socket_buffers(self) -> SocketBuffers | None:
        if self.dataplane is None:
            return None
        buffers = self.dataplane.socket_buffers
        return {"receive_bytes": buffers.receive_bytes, "send_bytes": buffers.send_bytes}

    def _counters(self) -> Counters | None:
        if self.dataplane is None:
            return None
        counters = self.dataplane.counters()
        return {
            "out": counters["out"],
            "in": counters["in"],
            "icmp": counters["icmp"],
            "system_calls": counters["system_calls"],
        }


def _row(peer: Peer, traffic: PeerTraffic) -> PeerRow:
    return PeerRow(
        subnet=str(peer.subnet),
        public_ip=str(peer.public_ip),
        packets_out=traffic.packets_out,
        bytes_out=traffic.bytes_out,
        packets_in=traffic.packets_in,
        bytes_in=traffic.bytes_in,
    )
