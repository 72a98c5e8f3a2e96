"""The headers of an inner packet: what is malformed, what decides about it, and the few fields that change."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network

from flannel_udp.model import Address
from flannel_udp.netconf.addresses import is_unicast

HEADER_BYTES = 20
IPV6_HEADER_BYTES = 40
HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION = 0, 43, 44, 51, 60  # RFC 8200 section 4, RFC 4302
UNKNOWN = -1
EXTENSION_HEADERS_MAX = 8  # RFC 8504 section 5.3
# RFC 4291 sections 2.5.2, 2.5.3, 2.5.5.2, 2.5.6 and 2.7; a router forwards a packet from none of these either.
_NEVER_FORWARDED = tuple(map(IPv6Network, ("::/128", "::1/128", "::ffff:0:0/96", "fe80::/10", "ff00::/8")))


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    padded = data + bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def may_be_a_pods(address: Address) -> bool:
    """Tell whether packets for a single host with this address are forwarded."""
    if isinstance(address, IPv4Address):
        return is_unicast(address)
    return not any(address in network for network in _NEVER_FORWARDED)


def version_of(packet: bytes) -> int:
    """Return 6 for what calls itself IPv6, 4 for everything else."""
    return 6 if packet[:1] and packet[0] >> 4 == 6 else 4


def length_said(packet: bytes, version: int) -> int:
    """Return how long the header says that its packet is; the header is there."""
    if version == 4:
        return int.from_bytes(packet[2:4], "big")
    return IPV6_HEADER_BYTES + int.from_bytes(packet[4:6], "big")


def fault_of(packet: bytes, version: int = 4) -> str | None:
    """Return what is malformed about a packet that is to be of this version, or None.

    RFC 1812 section 5.2.2 and RFC 8200 section 3. A router looks at no extension header.
    """
    if len(packet) < (HEADER_BYTES if version == 4 else IPV6_HEADER_BYTES):
        return "too_short"
    if packet[0] >> 4 != version:
        return f"not_ipv{version}"
    if version == 6:
        is_jumbogram = packet[4:7] == b"\0\0\0"  # RFC 2675: the length is in a Hop-by-Hop header
        return "bad_total_len" if is_jumbogram or length_said(packet, 6) != len(packet) else None
    return _ipv4_fault_of(packet)


def _ipv4_fault_of(packet: bytes) -> str | None:
    header_len = (packet[0] & 15) * 4
    if not HEADER_BYTES <= header_len <= len(packet):
        return "bad_header_len"
    if length_said(packet, 4) != len(packet):
        return "bad_total_len"
    return "bad_header_checksum" if checksum(packet[:header_len]) else None


@dataclass(frozen=True)
class Headers:
    """What decides about a packet, read from its headers."""

    version: int
    source: Address
    destination: Address
    traffic_class: int
    """IPv4 calls it TOS."""
    ttl: int
    """IPv6 calls it hop limit."""
    protocol: int
    """The transport's number; of a fragment, of what it is a part of. `UNKNOWN`: nobody can tell."""
    transport_at: int
    """Where the transport's header begins, behind options or extension headers; meaningless without `has_transport`."""
    has_transport: bool
    """False: it is in an earlier fragment, or the extension headers do not come to an end."""
    is_fragment: bool
    is_routed: bool = False
    """It has a Routing header: its last destination may be another than the one that stands here."""

    @property
    def plain(self) -> bool:
        """Whether it has the whole of its transport, whose checksum is over the addresses that stand here."""
        return self.has_transport and not self.is_fragment and not self.is_routed


def headers_of(packet: bytes) -> Headers:
    """Read the headers of a well-formed packet."""
    if version_of(packet) == 6:
        return _ipv6_headers(packet)
    fragment = int.from_bytes(packet[6:8], "big") & 0x3FFF  # More Fragments and the offset
    return Headers(
        version=4,
        source=IPv4Address(packet[12:16]),
        destination=IPv4Address(packet[16:20]),
        traffic_class=packet[1],
        ttl=packet[8],
        protocol=packet[9],
        transport_at=(packet[0] & 15) * 4,
        has_transport=not fragment & 0x1FFF,
        is_fragment=bool(fragment),
    )


def _ipv6_headers(packet: bytes) -> Headers:
    transport = _behind_extension_headers(packet)
    return Headers(
        version=6,
        source=IPv6Address(packet[8:24]),
        destination=IPv6Address(packet[24:40]),
        traffic_class=int.from_bytes(packet[:2], "big") >> 4 & 0xFF,
        ttl=packet[7],
        protocol=transport.protocol,
        transport_at=transport.at,
        has_transport=transport.is_there,
        is_fragment=FRAGMENT in transport.walked,
        is_routed=ROUTING in transport.walked,
    )


@dataclass(frozen=True)
class _Transport:
    protocol: int
    at: int
    is_there: bool
    walked: frozenset[int]
    """The kinds of extension headers that are in front of it."""


def _behind_extension_headers(packet: bytes) -> _Transport:
    protocol, at = packet[6], IPV6_HEADER_BYTES
    walked: list[int] = []
    while n_bytes := _extension_bytes(protocol, packet[at + 1 : at + 2]):
        walked.append(protocol)
        if len(walked) > EXTENSION_HEADERS_MAX or at + n_bytes > len(packet):
            return _Transport(UNKNOWN, at, False, frozenset(walked))
        is_later_fragment = protocol == FRAGMENT and int.from_bytes(packet[at + 2 : at + 4], "big") >> 3 != 0
        protocol, at = packet[at], at + n_bytes
        if is_later_fragment:
            return _Transport(protocol, at, False, frozenset(walked))
    return _Transport(protocol, at, True, frozenset(walked))


def _extension_bytes(kind: int, length: bytes) -> int:
    """Return how long the extension header is, 0 where it is none; `length` is its second byte, if there is one."""
    if kind == FRAGMENT:
        return 8
    said = length[0] if length else 0xFF  # cut short anyway
    if kind in (HOP_BY_HOP, ROUTING, DESTINATION):
        return (said + 1) * 8
    return (said + 2) * 4 if kind == AUTHENTICATION else 0


def pseudo_header(headers: Headers, n_bytes: int) -> bytes:
    """Return what a transport's checksum is over beside its `n_bytes` (RFC 9293 section 3.1, RFC 8200 section 8.1)."""
    ends = headers.source.packed + headers.destination.packed
    protocol = bytes([headers.protocol])
    if headers.version == 4:
        return ends + b"\0" + protocol + n_bytes.to_bytes(2, "big")
    return ends + n_bytes.to_bytes(4, "big") + b"\0\0\0" + protocol


def with_ttl(packet: bytes, ttl: int) -> bytes:
    """Return the packet with another TTL, its header checksum computed anew, or with another hop limit."""
    if version_of(packet) == 6:
        return packet[:7] + bytes([ttl]) + packet[8:]
    header_len = (packet[0] & 15) * 4
    header = packet[:8] + bytes([ttl]) + packet[9:10] + b"\0\0" + packet[12:header_len]
    return header[:10] + checksum(header).to_bytes(2, "big") + header[12:] + packet[header_len:]


def with_traffic_class(packet: bytes, traffic_class: int) -> bytes:
    """Return the packet with another traffic class, or with another TOS and a right header checksum."""
    if version_of(packet) == 6:
        first = 0x6000 | traffic_class << 4 | packet[1] & 0x0F
        return first.to_bytes(2, "big") + packet[2:]
    return with_ttl(packet[:1] + bytes([traffic_class]) + packet[2:], packet[8])
