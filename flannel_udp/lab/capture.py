"""One packet on its way from pod to pod, seen at every step: what `tcpdump` would show, from packet(7) sockets."""

from __future__ import annotations

import socket
import struct
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Self

from flannel_udp.errors import FlannelError
from flannel_udp.lab.node import Node, Pod
from flannel_udp.lab.probe import ECHO_REQUEST, ping

# Outgoing packets are shown to ETH_P_ALL sockets only, not to those that ask for IPv4.
_ETH_P_ALL, _ETH_P_IP = 0x0003, 0x0800
_SNAP_BYTES = 65_535
_UDP_HEADER_LEN = 8


@dataclass(frozen=True, slots=True)
class Packet:
    """The fields of an IPv4 packet that the demonstration shows; `total_len` counts bytes, header included."""

    source: IPv4Address
    destination: IPv4Address
    ttl: int
    protocol: int
    total_len: int
    payload: bytes

    @classmethod
    def parse(cls, data: bytes) -> Self | None:
        """Return the packet that `data` begins with, ``None`` if that is no whole IPv4 packet (RFC 791 3.1)."""
        if len(data) < 20 or data[0] >> 4 != 4:
            return None
        header_len = (data[0] & 0x0F) * 4
        total_len, ttl, protocol, source, destination = struct.unpack_from("!2xH4xBB2x4s4s", data)
        if not 20 <= header_len <= total_len <= len(data):
            return None
        payload = data[header_len:total_len]
        return cls(IPv4Address(source), IPv4Address(destination), ttl, protocol, total_len, payload)

    def inside(self, port: int) -> Packet | None:
        """Return the inner packet, if this is an outer one: UDP to the overlay's port."""
        if self.protocol != socket.IPPROTO_UDP or len(self.payload) < _UDP_HEADER_LEN:
            return None
        (destination_port,) = struct.unpack_from("!2xH", self.payload)
        return Packet.parse(self.payload[_UDP_HEADER_LEN:]) if destination_port == port else None

    def is_echo_request(self, source: IPv4Address, destination: IPv4Address) -> bool:
        """Tell whether this is a ping from `source` to `destination`."""
        ends = (self.source, self.destination) == (source, destination)
        return ends and self.protocol == socket.IPPROTO_ICMP and self.payload[:1] == bytes([ECHO_REQUEST])


@dataclass(frozen=True, slots=True)
class Step:
    """A place on the way and what has just happened to the packet; `packet` is ``None`` if it was not seen there."""

    node: Node
    interface: str
    story: str
    packet: Packet | None = None


def trace(source: Pod, target: Pod) -> list[Step]:
    """Send one ping and return what its request looked like at each step from pod to pod. The hosts must differ."""
    places = (
        (source, "eth0", "the pod sends it to its gateway, the host's bridge cni0"),
        *(_through_tunnel if source.plan.backend == "udp" else _by_route)(source.host, target.host),
        (target, "eth0", "its host routed it (TTL - 1) over cni0 to the pod"),
    )
    with ExitStack() as stack:
        taps = [stack.enter_context(_open_tap(node, interface)) for node, interface, _ in places]
        ping(source, [target.ip])
        return [
            Step(node, interface, story, _find(tap, source, target))
            for (node, interface, story), tap in zip(places, taps, strict=True)
        ]


def _through_tunnel(source: Node, target: Node) -> tuple[tuple[Node, str, str], ...]:
    return (
        (source, "flannel0", "the host routed it (TTL - 1) into the TUN device, where the agent reads it"),
        (source, "eth0", "the agent took one from the TTL and sent it as the payload of a UDP datagram"),
        (target, "flannel0", "the other agent took one from the TTL and wrote it to its TUN device"),
    )


def _by_route(source: Node, target: Node) -> tuple[tuple[Node, str, str], ...]:
    return (
        (source, "eth0", "the host routed it (TTL - 1) to the other host, by the route to that one's subnet"),
        (target, "eth0", "it arrives as it was sent: no header in front of it, and no agent on its way"),
    )


def _open_tap(node: Node, interface: str) -> socket.socket:
    """Return a socket that sees what passes the interface in both directions, from the network header on."""
    tap = node.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL))
    try:
        tap.bind((interface, _ETH_P_ALL))
    except OSError as error:
        tap.close()
        raise FlannelError(f"{node.path}: cannot listen on {interface}: {error.strerror}") from None
    tap.setblocking(False)
    return tap


def _find(tap: socket.socket, source: Pod, target: Pod) -> Packet | None:
    """Return the first packet that is, or carries, the echo request."""
    while True:
        try:
            data, address = tap.recvfrom(_SNAP_BYTES)
        except OSError:  # EAGAIN: that was all; ENETDOWN: the interface is down
            return None
        packet = Packet.parse(data) if address[1] == _ETH_P_IP else None
        if packet is None:
            continue
        inner = packet.inside(source.plan.port) or packet
        if inner.is_echo_request(source.ip, target.ip):
            return packet


def describe(packet: Packet, port: int) -> str:
    """Return the packet in words; an outer one with the inner one below it, indented."""
    inner = packet.inside(port)
    if inner is None:
        kind = "ICMP echo request" if packet.payload[:1] == bytes([ECHO_REQUEST]) else f"protocol {packet.protocol}"
        return f"{packet.source} → {packet.destination}  {kind}  TTL {packet.ttl}  {packet.total_len} bytes"
    source_port, destination_port = struct.unpack_from("!HH", packet.payload)
    outer = f"{packet.source}:{source_port} → {packet.destination}:{destination_port}"
    return f"{outer}  UDP  TTL {packet.ttl}  {packet.total_len} bytes, inside:\n  {describe(inner, port)}"
