"""An engine between a datagram socket pair in the TUN's place and real UDP sockets on loopback: no root needed.

The engine listens on 127.0.0.1, unless told otherwise; each peer is a socket on another loopback address, all on one
free port. Or on 2001:db8::1 with such peers, or on both: see `loopback6`.
"""

from __future__ import annotations

import os
import socket
import struct
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, Self

from flannel_udp._fastpath.engine import Engine
from flannel_udp._fastpath.routes import OWN, PEERS_FROM, RouteList, RouteTable
from flannel_udp._fastpath.routes6 import RouteList6, RouteTable6
from flannel_udp.dataplane.encapsulation import UDP, Encapsulation
from flannel_udp.dataplane.lanes import Lanes, open_lanes
from flannel_udp.dataplane.offload import SOL_UDP, UDP_SEGMENT, enable_on_socket
from flannel_udp.dataplane.reference import OWN as REFERENCE_OWN
from flannel_udp.dataplane.reference import ReferenceTable, VnetHeader
from flannel_udp.dataplane.underlay import IP_MTU_DISCOVER, IP_PMTUDISC_DO, IPV6_MTU_DISCOVER
from flannel_udp.model import Address
from flannel_udp.options import NO_OFFLOAD, Offload
from tests.support.loopback6 import open_ipv6_sockets
from tests.support.patience import PATIENCE_S

AGENT, AGENT6 = IPv4Address("127.0.0.1"), IPv6Address("2001:db8::1")
# By IP version; the last ones are in no table.
PEERS = {4: ("127.0.0.2", "127.0.0.3", "127.0.0.9"), 6: ("2001:db8::2", "2001:db8::3", "2001:db8::9")}
_MTU_DISCOVER = {4: (socket.IPPROTO_IP, IP_MTU_DISCOVER), 6: (socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER)}
BUFFER_BYTES = 4 << 20
PACKET_MAX = 65_535
VNET_HEADER_BYTES = 10
VXLAN = Encapsulation("vxlan", 1, 0x8E647CE7C901)
IPIP = Encapsulation("ipip")


def compile_table(reference: ReferenceTable) -> RouteTable:
    """Return the compiled table with the routes of a reference table of IPv4."""
    peers, next_hops = _peers_and_hops(reference)
    routes = RouteList(
        array("I", [int(prefix.network_address) for prefix in reference.routes]),
        array("B", [prefix.prefixlen for prefix in reference.routes]),
        next_hops,
    )
    addresses = array("I", [0, 0, *(int(peer) for peer in peers)])
    return RouteTable(routes, addresses, int(reference.own_address or 0), _macs(reference, peers))


def compile_table6(reference: ReferenceTable) -> RouteTable6:
    """Return the compiled table with the routes of a reference table of IPv6."""
    peers, next_hops = _peers_and_hops(reference)
    routes = RouteList6(
        b"".join(prefix.network_address.packed for prefix in reference.routes),
        array("B", [prefix.prefixlen for prefix in reference.routes]),
        next_hops,
    )
    addresses = bytes(PEERS_FROM * 16) + b"".join(peer.packed for peer in peers)
    return RouteTable6(routes, addresses, int(reference.own_address or 0), _macs(reference, peers))


def _peers_and_hops(reference: ReferenceTable) -> tuple[list[Address], array[int]]:
    """Return the peers in the order of their numbers, and each route's next hop."""
    peers = sorted({hop for hop in reference.routes.values() if not isinstance(hop, str)}, key=int)
    number = {peer: PEERS_FROM + i for i, peer in enumerate(peers)}
    return peers, array("I", [OWN if isinstance(hop, str) else number[hop] for hop in reference.routes.values()])


def _macs(reference: ReferenceTable, peers: Sequence[Address]) -> array[int] | None:
    return array("Q", [0, 0, *(reference.macs[peer] for peer in peers)]) if reference.macs else None


def small_table(encapsulation: Encapsulation = UDP, version: int = 4) -> ReferenceTable:
    """Three hosts: ours, whose subnet is 10.1.1.0/24 or fd00:10:244:1::/64, and two peers with the next ones."""
    subnet = {4: "10.1.{}.0/24", 6: "fd00:10:244:{}::/64"}[version]
    ours, second, third = (ip_network(subnet.format(n)) for n in (1, 2, 3))
    peers = [ip_address(peer) for peer in PEERS[version][:2]]
    macs = dict(zip(peers, (0x8E647CE7C902, 0x8E647CE7C903), strict=True))
    return ReferenceTable(
        encapsulation=encapsulation,
        macs=macs if encapsulation.kind == "vxlan" else {},
        routes={ours: REFERENCE_OWN, second: peers[0], third: peers[1]},
        own_address=ours.network_address,
        underlay_address=AGENT if version == 4 else AGENT6,
        version=version,
    )


@dataclass
class _Side:
    """What an engine of one IP version has of its own: where it receives, what it knows, how it is made."""

    table: ReferenceTable
    agent: str
    udp: socket.socket
    lanes: Lanes
    open: Callable[..., Engine]


class EngineRig:
    """The engine, the far end of its TUN, and its peers; `poll` moves everything that waits.

    For "ipip", too, the peers are UDP sockets: what they send begins with an outer header, as raw sockets read it.
    `beside`: the IPv6 table of a second engine on the same TUN. `peers`: their addresses, by default those of
    `small_table` of each version. IPv6 ones, and our end of them, are in a network namespace of their own.
    """

    def __init__(
        self,
        table: ReferenceTable,
        peers: Sequence[str] | None = None,
        source_check: str = "strict",
        vnet_bytes: int = 10,
        offload: Offload = NO_OFFLOAD,
        *,
        beside: ReferenceTable | None = None,
        agent: IPv4Address = AGENT,
        icmp_fd: int = -1,
        dscp: int = 0,
        lanes: bool = False,
        source_ports: int = 0,
    ) -> None:
        tables = [table] if beside is None else [table, beside]
        if peers is None:
            peers = [peer for each in tables for peer in PEERS[each.version][:2]]
        self.vnet_bytes = vnet_bytes
        self._near, self.tun = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for end in (self._near, self.tun):
            _prepare(end)
        self._sides: dict[int, _Side] = {}
        self.peers: dict[str, socket.socket] = {}
        self._marker = _open_marker() if peers else None
        for each in tables:
            ours = str(agent if each.version == 4 else AGENT6)
            theirs = [address for address in peers if ip_address(address).version == each.version]
            udp, *others = _open_sockets(each.version, [ours, *theirs])
            udp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, lanes)
            udp.bind((ours, 0))
            port: int = udp.getsockname()[1]
            for address, peer in zip(theirs, others, strict=True):
                peer.bind((address, port))
                self.peers[address] = peer
            level, option = _MTU_DISCOVER[each.version]
            udp.setsockopt(level, option, IP_PMTUDISC_DO)
            granted = enable_on_socket(udp, offload)
            opened = (
                open_lanes([udp], udp_gro=granted.udp_gro, source_ports=source_ports)[0]
                if lanes or source_ports
                else Lanes(udp)
            )
            self.joins_datagrams = granted.udp_gro
            new_engine = partial(
                Engine,
                self._near.fileno(),
                udp.fileno(),
                icmp_fd,
                port,
                source_check=source_check,
                vnet_bytes=vnet_bytes,
                dscp=dscp,
                segment=granted.udp_segment,
                join_tcp=granted.join_tcp,
                join_udp=granted.join_udp,
                lanes=opened.filenos(),
                ports=opened.n_ports,
                encapsulation=each.encapsulation.kind,
                vni=each.encapsulation.vni,
                own_mac=each.encapsulation.own_mac,
                version=each.version,
            )
            self._sides[each.version] = _Side(each, ours, udp, opened, new_engine)
        self.engines = self._open_engines()
        self._processors = _stay_on_one_processor()  # last: nothing fails any more that would leave it so

    def _open_engines(self) -> list[Engine]:
        engines: list[Engine] = []
        for side in self._sides.values():
            engine = side.open(beside=engines[0] if engines else None)
            engine.set_inner_mtu(side.table.mtu)
            engine.publish(compile_table(side.table) if side.table.version == 4 else compile_table6(side.table))
            engines.append(engine)
        return engines

    def start_anew(self) -> None:
        """Put other engines in the place of these, with zeros in their counters: they have learnt no path MTU."""
        self._close_engines()
        self.engines = self._open_engines()

    @property
    def engine(self) -> Engine:
        """The engine, or the first of two: the one that is polled."""
        return self.engines[0]

    @property
    def port(self) -> int:
        """The first engine's UDP port, and its peers'."""
        return self.agent(self._first.table.version)[1]

    def agent(self, version: int) -> tuple[str, int]:
        """Return where the engine of an IP version receives."""
        side = self._sides[version]
        return side.agent, side.udp.getsockname()[1]

    @property
    def _first(self) -> _Side:
        return next(iter(self._sides.values()))

    def from_tun(self, packet: bytes) -> None:
        """Let the host send a packet into the tunnel device."""
        self.tun.send(bytes(self.vnet_bytes) + packet)

    def from_peer(self, address: str, datagram: bytes) -> None:
        """Let a peer send a datagram."""
        self.peers[address].sendto(datagram, self.agent(ip_address(address).version))

    def bundle_from_peer(self, address: str, datagrams: Sequence[bytes]) -> None:
        """Let a peer send datagrams of one size (the last may be shorter) in one call, as one with UDP_SEGMENT does."""
        size = (SOL_UDP, UDP_SEGMENT, struct.pack("=H", len(datagrams[0])))
        self.peers[address].sendmsg([b"".join(datagrams)], [size], 0, self.agent(ip_address(address).version))

    def poll(self) -> int:
        """Run the engine until nothing waits; return how many packets it read."""
        self.settle()
        moved = self.poll_alone()
        self.settle()
        return moved

    def poll_alone(self) -> int:
        """Likewise, and do nothing else, where that would be counted. A single `Engine.poll` ends after a while."""
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
        self.settle()
        return _drain(self.peers[address])

    def settle(self) -> None:
        """Return when everything that was sent over loopback has arrived.

        Mostly it has as soon as it is sent; but a busy kernel may leave a processor's packets to its ksoftirqd. They
        are taken in order, so what the same processor sends after them arrives after them.
        """
        if self._marker is not None:
            self._marker.send(b"x")
            self._marker.recv(1)

    def drops(self, direction: str) -> dict[str, int]:
        """Return a direction's drop counters, of both engines where there are two."""
        return self._sum(lambda counters: counters[direction]["drops"])

    def counters(self, direction: str) -> dict[str, Any]:
        """Return a direction's counters, likewise."""
        numbers = self._sum(lambda counters: {name: counters[direction][name] for name in ("packets", "bytes")})
        return {"packets": 0, "bytes": 0, **numbers, "drops": self.drops(direction)}

    def system_calls(self) -> dict[str, int]:
        """Return how often each system call was made, likewise."""
        return self._sum(lambda counters: counters["system_calls"])

    def _sum(self, part: Callable[[dict[str, Any]], dict[str, int]]) -> dict[str, int]:
        total = Counter[str]()
        for engine in self.engines:
            total.update(part(engine.counters()))
        return dict(total)

    @property
    def tun_fd(self) -> int:
        """The engine's end of the tunnel device."""
        return self._near.fileno()

    @property
    def udp_fd(self) -> int:
        """The engine's socket."""
        return self._first.udp.fileno()

    def shrink_send_buffer(self) -> None:
        """Leave the engine's sockets room for a few packets only."""
        for udp in self._first.lanes.sockets:
            udp.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_608)

    def let_writes_wait(self) -> None:
        """Let each write to the tunnel device wait for somebody who reads there, once a few packets lie unread."""
        self._near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_608)
        self._near.setblocking(True)

    def _close_engines(self) -> None:
        for engine in reversed(self.engines):
            engine.close()

    def close(self) -> None:
        """Close everything."""
        os.sched_setaffinity(0, self._processors)
        self._close_engines()
        for end in (self._near, self.tun, self._marker, *self.peers.values()):
            if end is not None:
                end.close()
        for side in self._sides.values():  # after the peers, whose port is free on their addresses as long as on ours
            side.lanes.close()
            side.udp.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open_sockets(version: int, addresses: Sequence[str]) -> list[socket.socket]:
    """Return a UDP socket for each of the addresses, which has yet to be bound to it."""
    if version == 4:
        sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in addresses]
    else:
        sockets = open_ipv6_sockets(addresses, len(addresses))
    for udp in sockets:
        _prepare(udp)
    return sockets


def _stay_on_one_processor() -> set[int]:
    """Keep this thread where it is, as processors have a queue each, and return where it was allowed to be."""
    allowed = os.sched_getaffinity(0)
    # By process: tests that run beside each other are to share the processors.
    os.sched_setaffinity(0, {sorted(allowed)[os.getpid() % len(allowed)]})
    return allowed


def _open_marker() -> socket.socket:
    """Return a socket that receives what it sends."""
    marker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    marker.bind(("127.0.0.1", 0))
    marker.connect(marker.getsockname())
    marker.settimeout(PATIENCE_S)
    return marker


def _prepare(end: socket.socket) -> None:
    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    end.setblocking(False)


def _drain(end: socket.socket) -> list[bytes]:
    got = []
    while True:
        try:
            got.append(end.recv(PACKET_MAX + 10))
        except BlockingIOError:
            return got
