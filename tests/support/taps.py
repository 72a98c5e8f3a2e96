"""Looking at an interface and putting crafted packets on it: packet(7) and raw(7) sockets inside a lab's nodes."""

from __future__ import annotations

import socket
import time
from ipaddress import IPv4Address
from types import TracebackType
from typing import Any, Self

from scapy.layers.inet import ICMP, IP

from flannel_udp.lab import netns
from flannel_udp.lab.node import Node
from tests.support.patience import PATIENCE_S

_ETH_P, _ETH_P_ALL = {4: 0x0800, 6: 0x86DD}, 0x0003
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h
_IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE = 10, 3  # linux/in.h
_BUFFER_BYTES = 16 << 20
_ERROR_TYPES = (3, 11)  # RFC 792: destination unreachable, time exceeded


class _Listener:
    """A socket whose packets are read without blocking; the base of the two below."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        sock.setblocking(False)

    def _next(self, timeout_s: float) -> tuple[bytes, Any] | None:
        if not netns.is_readable(self._socket.fileno(), max(timeout_s, 0.0)):
            return None
        return self._socket.recvfrom(65_535)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._socket.close()


class Tap(_Listener):
    """Sees the IP packets that pass an interface, in both directions, from when it is made on."""

    def __init__(self, node: Node, interface: str) -> None:
        # Of no protocol until it is bound: before that it would hear what passes any interface of the node.
        super().__init__(node.socket(socket.AF_PACKET, socket.SOCK_DGRAM))
        self._socket.bind((interface, _ETH_P_ALL))  # outgoing packets are shown to ETH_P_ALL sockets only

    def packets(self, version: int = 4) -> list[bytes]:
        """Return what passed of one IP version since the last call."""
        seen = []
        while (found := self._next(0)) is not None:
            data, address = found
            if address[1] == _ETH_P[version]:
                seen.append(data)
        return seen

    def saw_echoes(self) -> bool:
        """Tell whether an ICMP echo, or the answer to one, of either IP version passed since the last call."""
        seen = []
        while (found := self._next(0)) is not None:
            data, address = found
            seen.append(_is_echo(data, address[1]))
        return any(seen)

    def datagrams(self, port: int) -> list[bytes]:
        """Return the payloads of the whole UDP datagrams to `port` that passed since the last call."""
        # Headers without options, as our hosts send them: IPv4 20 bytes, UDP 8; by hand, as there may be thousands.
        return [
            packet[28:]
            for packet in self.packets()
            if packet[9] == socket.IPPROTO_UDP and packet[22:24] == port.to_bytes(2, "big")
        ]


def _is_echo(packet: bytes, ethertype: int) -> bool:
    """Tell whether a packet without options or extension headers is an ICMP echo or its answer (RFC 792, RFC 4443)."""
    if ethertype == _ETH_P[4]:
        return packet[9] == socket.IPPROTO_ICMP and packet[20] in (0, 8)
    return ethertype == _ETH_P[6] and packet[6] == socket.IPPROTO_ICMPV6 and packet[40] in (128, 129)


def is_echo_request(packet: bytes) -> bool:
    """Tell whether an IPv4 packet without options is an ICMP echo request (RFC 792): agents ask their peers so."""
    return packet[9] == socket.IPPROTO_ICMP and packet[20] == 8


class IcmpErrors(_Listener):
    """The ICMP errors that reach a node, in the order in which they come."""

    def __init__(self, node: Node) -> None:
        super().__init__(node.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))

    def next(self, timeout_s: float = PATIENCE_S) -> Any | None:
        """Return the next one as scapy sees it, ``None`` if none comes in time."""
        deadline_s = time.monotonic() + timeout_s
        while (found := self._next(deadline_s - time.monotonic())) is not None:
            packet = IP(found[0])
            if packet[ICMP].type in _ERROR_TYPES:
                return packet
        return None


def send_raw(node: Node, packet: Any, times: int = 1) -> None:
    """Let a node send an IPv4 packet of our making; its kernel routes it, whatever it learned of the path's MTU."""
    data = bytes(packet)
    with node.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE)
        for _ in range(times):
            sock.sendto(data, (packet.dst, 0))


def put_on(node: Node, interface: str, packet: Any) -> None:
    """Let an IPv4 packet leave by an interface, whatever the routes say: on flannel0 it is what the agent reads."""
    with node.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as sock:
        sock.sendto(bytes(packet), (interface, _ETH_P[4]))


def quoted_id(error: Any) -> int:
    """Return the IP identification of the packet that an ICMP error is about."""
    number: int = error["IP in ICMP"].id
    return number


def send_datagrams(node: Node, source: IPv4Address, target: IPv4Address, port: int, payloads: list[bytes]) -> None:
    """Send UDP datagrams from `port` of one underlay address to the same port of another."""
    with node.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((str(source), port))
        for payload in payloads:
            sock.sendto(payload, (str(target), port))
