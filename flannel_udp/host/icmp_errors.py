"""What the underlay says of packets that cannot reach a peer: ICMP errors about the tunnel's own outer packets.

They are read from a raw socket. To ask the sockets that send (IP_RECVERR) would let an error of one peer fail the next
datagram to another one.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Collection
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from flannel_udp.errors import FlannelError
from flannel_udp.host.family import IPV4, Family, family_of
from flannel_udp.host.packet_filter import (
    ICMPV6_BYTES,
    IPV6_BYTES,
    PARAMETER_PROBLEM,
    PARAMETER_PROBLEM_V6,
    TIME_EXCEEDED,
    TIME_EXCEEDED_V6,
    UNREACHABLE,
    UNREACHABLE_V6,
    accept_errors_about_ipip,
    accept_errors_about_udp,
    accept_errors_about_udp_v6,
    accept_types,
    accept_types_v6,
)
from flannel_udp.model import Address

READ_A_SECOND_MAX = 200
"""Errors that are looked at; others wait in the socket's small buffer, and are lost when it is full."""
_BUFFER_BYTES = 64 << 10
_MESSAGE_BYTES = 128  # an outer header of 60, an ICMP header, and of the quoted packet a header of 20 and 8 bytes more

_HEADER = struct.Struct("!BxHxxHxBxx4s4s")  # IPv4: version and length, total length, fragment, protocol, addresses
_UDP_PORTS = struct.Struct("!HH")
_IHL_MIN_BYTES, _ICMP_BYTES = 20, 8
_OFFSET_MASK = 0x1FFF

_FRAGMENTATION_NEEDED = 4  # no fault: the packet path sends what fits
_UNREACHABLE_TEXTS = {  # by code: RFC 792, RFC 1122 section 3.2.2.1, RFC 1812 section 5.2.7.1
    0: "network unreachable",
    1: "host unreachable",
    2: "protocol unreachable",
    3: "port unreachable",
    5: "source route failed",
    6: "network unknown",
    7: "host unknown",
    9: "network prohibited",
    10: "host prohibited",
    11: "network unreachable for this type of service",
    12: "host unreachable for this type of service",
    13: "prohibited by a filter",
}
_UNREACHABLE_V6_TEXTS = {  # by code: RFC 4443 section 3.1
    0: "no route",
    1: "prohibited by a filter",
    2: "beyond the scope of our address",
    3: "address unreachable",
    4: "port unreachable",
    5: "source address failed a policy",
    6: "route rejected",
}
_OTHER_V6_TEXTS = {TIME_EXCEEDED_V6: "hop limit exceeded on the way", PARAMETER_PROBLEM_V6: "bad header"}
_HEADER_V6 = struct.Struct("!B5xBx16s16s")  # IPv6: version, next header, addresses
_OTHER_TEXTS = {TIME_EXCEEDED: "time to live exceeded on the way", PARAMETER_PROBLEM: "bad header"}


class IcmpError(NamedTuple):
    """An error about a packet to `peer`, from the host `said_by`."""

    peer: Address
    said_by: Address
    text: str


def parse_icmp_error(
    datagram: bytes, source: IPv4Address, source_ports: Collection[int], port: int | None
) -> IcmpError | None:
    """Return what an IPv4 packet with an ICMP error says of an outer packet of ours, from this address.

    That is a UDP datagram from one of these ports to `port`, with ``None`` any packet of IP in IP (protocol 4).
    ``None`` for everything else, for what is cut short, and for "fragmentation needed".
    """
    outer = _read_header(datagram, 0)
    if outer is None or outer.protocol != socket.IPPROTO_ICMP or outer.end + _ICMP_BYTES > len(datagram):
        return None
    text = _text(datagram[outer.end], datagram[outer.end + 1])
    quoted = _read_header(datagram, outer.end + _ICMP_BYTES)
    if text is None or quoted is None or quoted.source != source:
        return None
    if port is None:
        ours = quoted.protocol == socket.IPPROTO_IPIP
    else:
        ours = _is_datagram(datagram, quoted, source_ports, port)
    return IcmpError(quoted.destination, outer.source, text) if ours else None


def parse_icmpv6_error(
    message: bytes, said_by: IPv6Address, source: IPv6Address, source_ports: Collection[int], port: int
) -> IcmpError | None:
    """Return what an ICMPv6 message says of a UDP datagram of ours, likewise: it comes without its IP header.

    ``None`` also for "packet too big".
    """
    at = ICMPV6_BYTES + IPV6_BYTES
    if len(message) < at + _UDP_PORTS.size:
        return None
    kind, code = message[0], message[1]
    text = _OTHER_V6_TEXTS.get(kind)
    if kind == UNREACHABLE_V6:
        text = _UNREACHABLE_V6_TEXTS.get(code, f"unreachable (code {code})")
    version, next_header, ours, peer = _HEADER_V6.unpack_from(message, ICMPV6_BYTES)
    from_port, to_port = _UDP_PORTS.unpack_from(message, at)
    if text is None or version >> 4 != 6 or next_header != socket.IPPROTO_UDP or ours != source.packed:
        return None
    return IcmpError(IPv6Address(peer), said_by, text) if to_port == port and from_port in source_ports else None


def _is_datagram(datagram: bytes, quoted: _Header, source_ports: Collection[int], port: int) -> bool:
    if quoted.protocol != socket.IPPROTO_UDP or quoted.end + _UDP_PORTS.size > len(datagram):
        return False
    from_port, to_port = _UDP_PORTS.unpack_from(datagram, quoted.end)
    return to_port == port and from_port in source_ports


class _Header(NamedTuple):
    protocol: int
    source: IPv4Address
    destination: IPv4Address
    end: int


def _read_header(datagram: bytes, at: int) -> _Header | None:
    """Read an IPv4 header of what is no later fragment, which has no header of another protocol in it."""
    if at + _HEADER.size > len(datagram):
        return None
    version_ihl, _, fragment, protocol, source, destination = _HEADER.unpack_from(datagram, at)
    ihl = (version_ihl & 0xF) * 4
    if version_ihl >> 4 != 4 or ihl < _IHL_MIN_BYTES or fragment & _OFFSET_MASK:
        return None
    return _Header(protocol, IPv4Address(source), IPv4Address(destination), at + ihl)


def _text(kind: int, code: int) -> str | None:
    if kind != UNREACHABLE:
        return _OTHER_TEXTS.get(kind)
    if code == _FRAGMENTATION_NEEDED:
        return None
    return _UNREACHABLE_TEXTS.get(code, f"unreachable (code {code})")


class IcmpErrors:
    """Calls `heard(error)` on the running loop for each error about an outer packet from `source`, until closed.

    `source_ports` says which UDP ports datagrams leave from just now, `port` is every peer's; ``None``: packets are IP
    in IP. A flood costs what `READ_A_SECOND_MAX` allows. Raises `FlannelError` without the right to open raw sockets.
    """

    def __init__(
        self,
        source: Address,
        source_ports: Callable[[], Collection[int]],
        port: int | None,
        heard: Callable[[IcmpError], None],
    ) -> None:
        self._source, self._source_ports, self._port, self._heard = source, source_ports, port, heard
        self._raw = open_raw_icmp(family_of(source))
        self._raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        if source.version == 4:
            accept_types(self._raw, (UNREACHABLE, TIME_EXCEEDED, PARAMETER_PROBLEM))
        else:
            accept_types_v6(self._raw, (UNREACHABLE_V6, TIME_EXCEEDED_V6, PARAMETER_PROBLEM_V6))
        self._accept()
        self._loop = asyncio.get_running_loop()
        self._left = READ_A_SECOND_MAX
        self._second: asyncio.TimerHandle | None = None
        self._loop.add_reader(self._raw, self._read)

    def _accept(self) -> None:
        if isinstance(self._source, IPv6Address):
            assert self._port is not None  # noqa: S101 - IP in IP is IPv4's
            accept_errors_about_udp_v6(self._raw, self._source, self._port)
        elif self._port is None:
            accept_errors_about_ipip(self._raw, self._source)
        else:
            accept_errors_about_udp(self._raw, self._source, self._port)

    def follow(self, source: Address) -> None:
        """Listen to errors about packets from another address of the same family."""
        if source != self._source:
            self._source = source
            self._accept()

    def close(self) -> None:
        """Stop listening and close the socket."""
        if self._second is not None:
            self._second.cancel()
        self._loop.remove_reader(self._raw)
        self._raw.close()

    def _read(self) -> None:
        if self._second is None:
            self._second = self._loop.call_later(1.0, self._refill)
        while self._left:
            self._left -= 1
            try:
                datagram, sender = self._raw.recvfrom(_MESSAGE_BYTES)
            except BlockingIOError:
                return
            error = self._parse(datagram, sender[0])
            if error is not None:
                self._heard(error)
        self._loop.remove_reader(self._raw)

    def _parse(self, datagram: bytes, sender: str) -> IcmpError | None:
        if isinstance(self._source, IPv4Address):
            return parse_icmp_error(datagram, self._source, self._source_ports(), self._port)
        assert self._port is not None  # noqa: S101 - IP in IP is IPv4's
        return parse_icmpv6_error(datagram, IPv6Address(sender), self._source, self._source_ports(), self._port)

    def _refill(self) -> None:
        self._second = None
        if not self._left:
            self._loop.add_reader(self._raw, self._read)
        self._left = READ_A_SECOND_MAX


def open_raw_icmp(family: Family = IPV4) -> socket.socket:
    """Open a raw socket for ICMP, or ICMPv6. Raises `FlannelError`."""
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    protocol = socket.IPPROTO_ICMP if family is IPV4 else socket.IPPROTO_ICMPV6
    try:
        return socket.socket(family.af, kind, protocol)
    except OSError as failed:
        raise FlannelError(f"cannot open a raw socket for ICMP: {failed.strerror}") from failed
