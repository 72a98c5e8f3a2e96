"""An engine between a datagram socket pair in the TUN's place and real UDP sockets on loopback: no root needed.

The engine listens on 127.0.0.1, unless told otherwise; each peer is a socket on another loopback address, all on one
free port.
"""

from __future__ import annotations

import socket
import struct
from array import array
from collections.abc import Sequence
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Self

from flannel_udp._fastpath.engine import Engine
from flannel_udp._fastpath.routes import OWN, PEERS_FROM, RouteList, RouteTable
from flannel_udp.dataplane.lanes import open_lanes
from flannel_udp.dataplane.offload import SOL_UDP, UDP_SEGMENT, enable_on_socket
from flannel_udp.dataplane.reference import OWN as REFERENCE_OWN
from flannel_udp.dataplane.reference import ReferenceTable, VnetHeader
from flannel_udp.dataplane.underlay import IP_MTU_DISCOVER, IP_PMTUDISC_DO
from flannel_udp.options import NO_OFFLOAD, Offload

AGENT = IPv4Address("127.0.0.1")
BUFFER_BYTES = 4 << 20
PACKET_MAX = 65_535
VNET_HEADER_BYTES = 10


def compile_table(reference: ReferenceTable) -> RouteTable:
    """Return the compiled table with the routes of a reference table."""
    peers = sorted({hop for hop in reference.routes.values() if isinstance(hop, IPv4Address)})
    index = {peer: PEERS_FROM + i for i, peer in enumerate(peers)}
    routes = RouteList(
        array("I", [int(prefix.network_address) for prefix in reference.routes]),
        array("B", [prefix.prefixlen for prefix in reference.routes]),
        array("I", [index[hop] if isinstance(hop, IPv4Address) else OWN for hop in reference.routes.values()]),
    )
    return RouteTable(routes, array("I", [0, 0, *(int(peer) for peer in peers)]), int(reference.own_address or 0))


def small_table() -> ReferenceTable:
    """Three hosts: ours 10.1.1.0/24, peers 127.0.0.2 (10.1.2.0/24) and 127.0.0.3 (10.1.3.0/24)."""
    return ReferenceTable(
        routes={
            IPv4Network("10.1.1.0/24"): REFERENCE_OWN,
            IPv4Network("10.1.2.0/24"): IPv4Address("127.0.0.2"),
            IPv4Network("10.1.3.0/24"): IPv4Address("127.0.0.3"),
        },
        own_address=IPv4Address("10.1.1.0"),
    )


class EngineRig:
    """The engine, the far end of its TUN, and its peers; `poll` moves everything that waits."""

    def __init__(
        self,
        table: ReferenceTable,
        peers: Sequence[str] = ("127.0.0.2", "127.0.0.3"),
        source_check: str = "strict",
        vnet_bytes: int = 10,
        offload: Offload = NO_OFFLOAD,
        *,
        agent: IPv4Address = AGENT,
        icmp_fd: int = -1,
        dscp: int = 0,
        lanes: bool = False,
    ) -> None:
        self._agent = str(agent)
        self.vnet_bytes = vnet_bytes
        self._near, self.tun = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, lanes)
        self._udp.bind((self._agent, 0))
        self.port: int = self._udp.getsockname()[1]
        self.peers: dict[str, socket.socket] = {}
        for end in (self._near, self.tun, self._udp):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
            end.setblocking(False)
        for address in peers:
            peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.peers[address] = peer
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
            peer.bind((address, self.port))
            peer.setblocking(False)
        self._udp.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        granted = enable_on_socket(self._udp, offload)
        self._lanes = open_lanes([self._udp], udp_gro=granted.udp_gro)[0] if lanes else []
        self._table = compile_table(table)
        self._new_engine = partial(
            Engine,
            self._near.fileno(),
            self._udp.fileno(),
            icmp_fd,
            self.port,
            source_check=source_check,
            vnet_bytes=vnet_bytes,
            dscp=dscp,
            segment=granted.udp_segment,
            join_tcp=granted.join_tcp,
            join_udp=granted.join_udp,
            lanes=[lane.fileno() for lane in self._lanes],
        )
        self.engine = self._new_engine()
        self.engine.publish(self._table)

    def start_anew(self) -> None:
        """Put another engine in the place of this one, with zeros in its counters: it has learnt no path MTU."""
        self.engine.close()
        self.engine = self._new_engine()
        self.engine.publish(self._table)

    def from_tun(self, packet: bytes) -> None:
        """Let the host send a packet into the tunnel device."""
        self.tun.send(bytes(self.vnet_bytes) + packet)

    def from_peer(self, address: str, datagram: bytes) -> None:
        """Let a peer send a datagram."""
        self.peers[address].sendto(datagram, (self._agent, self.port))

    def bundle_from_peer(self, address: str, datagrams: Sequence[bytes]) -> None:
        """Let a peer send datagrams of one size (the last may be shorter) in one call, as one with UDP_SEGMENT does."""
        size = (SOL_UDP, UDP_SEGMENT, struct.pack("=H", len(datagrams[0])))
        self.peers[address].sendmsg([b"".join(datagrams)], [size], 0, (self._agent, self.port))

    def poll(self) -> int:
        """Run the engine until nothing waits; return how many packets it read."""
        moved = 0
        while got := self.engine.poll():
            moved += got
        return moved

    def to_tun(self) -> list[bytes]:
        """Return the packets that the engine wrote to the tunnel device, in order."""
        return [packet[self.vnet_bytes :] for packet in _drain(self.tun)]

    def to_tun_raw(self) -> list[tuple[VnetHeader, bytes]]:
        """Return what the engine wrote to the tunnel device, super-packets whole."""
        return [(VnetHeader.unpack(data), data[VNET_HEADER_BYTES:]) for data in _drain(self.tun)]

    def to_peer(self, address: str) -> list[bytes]:
        """Return the datagrams that a peer received, in order."""
        return _drain(self.peers[address])

    def drops(self, direction: str) -> dict[str, int]:
        """Return a direction's drop counters."""
        drops: dict[str, int] = self.engine.counters()[direction]["drops"]
        return drops

    def counters(self, direction: str) -> dict[str, Any]:
        """Return a direction's counters."""
        counters: dict[str, Any] = self.engine.counters()[direction]
        return counters

    @property
    def tun_fd(self) -> int:
        """The engine's end of the tunnel device."""
        return self._near.fileno()

    @property
    def udp_fd(self) -> int:
        """The engine's socket."""
        return self._udp.fileno()

    def shrink_send_buffer(self) -> None:
        """Leave the engine's sockets room for a few packets only."""
        for udp in (self._udp, *self._lanes):
            udp.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_608)

    def let_writes_wait(self) -> None:
        """Let each write to the tunnel device wait for somebody who reads there, once a few packets lie unread."""
        self._near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_608)
        self._near.setblocking(True)

    def close(self) -> None:
        """Close everything."""
        self.engine.close()
        for end in (self._near, self.tun, self._udp, *self._lanes, *self.peers.values()):
            end.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _drain(end: socket.socket) -> list[bytes]:
    got = []
    while True:
        try:
            got.append(end.recv(PACKET_MAX + 10))
        except BlockingIOError:
            return got
