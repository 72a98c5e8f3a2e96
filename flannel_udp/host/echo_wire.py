"""How an ICMP echo of ours looks on the wire, by IP version: sockets, messages, what comes back."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple, Protocol

from flannel_udp.errors import FlannelError
from flannel_udp.host.icmp_errors import open_raw_icmp
from flannel_udp.host.packet_filter import (
    ECHO,
    ECHO_REPLY,
    ECHO_REPLY_V6,
    ECHO_V6,
    TIME_EXCEEDED,
    TIME_EXCEEDED_V6,
    TOO_BIG_V6,
    UNREACHABLE,
    UNREACHABLE_V6,
    accept_echoes,
    accept_echoes_v6,
    accept_types,
    accept_types_v6,
)
from flannel_udp.model import Address

COOKIE_BYTES = 16
"""Behind an echo's header: it begins with the secret of the process."""
_ICMP = struct.Struct("!BBHHH")  # type, code, checksum, identifier, sequence number
_IPV6_BYTES = 40

# linux/in.h and linux/in6.h
_IP_TTL, _IP_PKTINFO, _IP_MTU_DISCOVER = 2, 8, 10
_IPV6_MTU_DISCOVER, _IPV6_PKTINFO, _IPV6_HOPLIMIT, _IPV6_DONTFRAG = 23, 50, 52, 62
_PMTUDISC_PROBE = 3
_PKTINFO = struct.Struct("=i4s4x")  # struct in_pktinfo: no device, the source
_PKTINFO_V6 = struct.Struct("=16sI")  # struct in6_pktinfo: the source, no device
_INT = struct.Struct("=i")
_FRAGMENTATION_NEEDED = 4

Control = list[tuple[int, int, bytes]]


class Heard(NamedTuple):
    """What was said of the echo with that cookie: it was answered, or it was too large (``mtu``), or cannot arrive."""

    cookie: bytes
    answered: bool
    mtu: int | None = None


class EchoWire(Protocol):
    """One IP version's way."""

    headers_bytes: int
    """Before the cookie."""

    def open(self, identifier: int, secret: bytes) -> socket.socket:
        """Open a socket that hears of echoes with this identifier and such a cookie only. Raises `FlannelError`."""
        ...

    def message(self, identifier: int, number: int, body: bytes) -> bytes:
        """Return an echo as the socket sends it."""
        ...

    def control(self, source: Address | None, hops: int | None) -> Control:
        """Return what makes the socket send from an address, and past so many hosts at most."""
        ...

    def read(self, datagram: bytes) -> Heard:
        """Understand what the socket has received, which the filter let through."""
        ...


class EchoWireV4:
    """ICMP, RFC 792; the socket receives the IPv4 header, too."""

    headers_bytes = 20 + _ICMP.size

    def open(self, identifier: int, secret: bytes) -> socket.socket:
        """See `EchoWire`."""
        raw = open_raw_icmp()
        raw.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
        accept_types(raw, (ECHO_REPLY, UNREACHABLE, TIME_EXCEEDED))
        accept_echoes(raw, identifier, secret)
        return raw

    def message(self, identifier: int, number: int, body: bytes) -> bytes:
        """See `EchoWire`."""
        message = _ICMP.pack(ECHO, 0, 0, identifier, number & 0xFFFF) + body
        return message[:2] + struct.pack("!H", _checksum(message)) + message[4:]

    def control(self, source: Address | None, hops: int | None) -> Control:
        """See `EchoWire`."""
        found = [] if source is None else [(socket.IPPROTO_IP, _IP_PKTINFO, _PKTINFO.pack(0, source.packed))]
        return found if hops is None else [*found, (socket.IPPROTO_IP, _IP_TTL, _INT.pack(hops))]

    def read(self, datagram: bytes) -> Heard:
        """See `EchoWire`."""
        head = (datagram[0] & 0xF) * 4
        kind, code, mtu = datagram[head], datagram[head + 1], int.from_bytes(datagram[head + 6 : head + 8])
        at = head + _ICMP.size
        if kind != ECHO_REPLY:
            at += (datagram[at] & 0xF) * 4 + _ICMP.size if len(datagram) > at else 0
        too_large = kind == UNREACHABLE and code == _FRAGMENTATION_NEEDED
        return Heard(datagram[at : at + COOKIE_BYTES], kind == ECHO_REPLY, mtu if too_large else None)


class EchoWireV6:
    """ICMPv6, RFC 4443; the socket receives no IPv6 header, and its kernel makes the checksums."""

    headers_bytes = _IPV6_BYTES + _ICMP.size

    def open(self, identifier: int, secret: bytes) -> socket.socket:
        """See `EchoWire`."""
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        try:
            raw = socket.socket(socket.AF_INET6, kind, socket.IPPROTO_ICMPV6)
        except OSError as failed:
            raise FlannelError(f"cannot open a raw socket for ICMPv6: {failed.strerror}") from failed
        raw.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
        raw.setsockopt(socket.IPPROTO_IPV6, _IPV6_DONTFRAG, 1)
        accept_types_v6(raw, (ECHO_REPLY_V6, UNREACHABLE_V6, TOO_BIG_V6, TIME_EXCEEDED_V6))
        accept_echoes_v6(raw, identifier, secret)
        return raw

    def message(self, identifier: int, number: int, body: bytes) -> bytes:
        """See `EchoWire`."""
        return _ICMP.pack(ECHO_V6, 0, 0, identifier, number & 0xFFFF) + body

    def control(self, source: Address | None, hops: int | None) -> Control:
        """See `EchoWire`."""
        found = [] if source is None else [(socket.IPPROTO_IPV6, _IPV6_PKTINFO, _PKTINFO_V6.pack(source.packed, 0))]
        return found if hops is None else [*found, (socket.IPPROTO_IPV6, _IPV6_HOPLIMIT, _INT.pack(hops))]

    def read(self, datagram: bytes) -> Heard:
        """See `EchoWire`."""
        kind, mtu = datagram[0], int.from_bytes(datagram[4:8])
        at = _ICMP.size if kind == ECHO_REPLY_V6 else _ICMP.size + _IPV6_BYTES + _ICMP.size
        return Heard(datagram[at : at + COOKIE_BYTES], kind == ECHO_REPLY_V6, mtu if kind == TOO_BIG_V6 else None)


WIRES: dict[int, EchoWire] = {4: EchoWireV4(), 6: EchoWireV6()}


def _checksum(message: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    padded = message + bytes(len(message) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
