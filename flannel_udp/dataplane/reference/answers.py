"""The ICMP errors about dropped packets: RFC 792 and RFC 1812 section 4.3, RFC 4443 for IPv6."""

from __future__ import annotations

from flannel_udp.dataplane.reference.packets import (
    HEADER_BYTES,
    IPV6_HEADER_BYTES,
    Headers,
    checksum,
    headers_of,
    may_be_a_pods,
)
from flannel_udp.model import Address

ICMP, ICMPV6 = 1, 58
ICMP_HEADER_BYTES = 8
IPV6_MTU_MIN = 1280  # RFC 8200 section 5
ANSWER_MAX_BYTES = {4: 576, 6: 1280}  # RFC 1812 section 4.3.2.3, RFC 4443 section 2.4 (c)
ANSWER_TTL = 64
TYPE_AND_CODE = {
    4: {"no_route": (3, 0), "own_subnet": (3, 0), "ttl_expired": (11, 0), "too_big": (3, 4)},
    6: {"no_route": (1, 0), "own_subnet": (1, 3), "ttl_expired": (3, 0), "too_big": (2, 0)},
}
ERRORS = {4: frozenset({3, 4, 5, 11, 12}), 6: frozenset({*range(128), 137})}  # 137 is a redirect


def icmp_answer(packet: bytes, reason: str, own_address: Address | None, mtu: int = 0) -> bytes | None:
    """Return the ICMP error about a well-formed packet, or None where none may be sent."""
    headers = headers_of(packet)
    if own_address is None or not _may_be_answered(packet, headers):
        return None
    kind, code = TYPE_AND_CODE[headers.version][reason]
    if headers.version == 6:
        told = max(mtu, IPV6_MTU_MIN) if reason == "too_big" else 0
        return _icmpv6(bytes([kind, code, 0, 0]) + told.to_bytes(4, "big"), packet, own_address)
    return _icmpv4(bytes([kind, code, 0, 0, 0, 0]) + mtu.to_bytes(2, "big"), packet)


def _may_be_answered(packet: bytes, headers: Headers) -> bool:
    """RFC 1812 section 4.3.2.7, RFC 4443 section 2.4 (e): nothing about errors, nor about what is for many."""
    if not headers.has_transport or not all(map(may_be_a_pods, (headers.source, headers.destination))):
        return False
    if headers.protocol != (ICMP if headers.version == 4 else ICMPV6):
        return True
    kind = packet[headers.transport_at : headers.transport_at + 1]
    return bool(kind) and kind[0] not in ERRORS[headers.version]  # cut short, it might have been an error


def _icmpv4(icmp_header: bytes, packet: bytes) -> bytes:
    """Source and header checksum are left to the kernel (raw(7))."""
    message = icmp_header + packet[: ANSWER_MAX_BYTES[4] - HEADER_BYTES - ICMP_HEADER_BYTES]
    message = message[:2] + checksum(message).to_bytes(2, "big") + message[4:]
    return (
        bytes([0x45, (packet[1] & 0x1E) | 0xC0])  # RFC 1812 section 4.3.2.5: precedence 6
        + (HEADER_BYTES + len(message)).to_bytes(2, "big")
        + bytes([0, 0, 0, 0, ANSWER_TTL, ICMP, 0, 0])
        + bytes(4)
        + packet[12:16]
        + message
    )


def _icmpv6(icmp_header: bytes, packet: bytes, own_address: Address) -> bytes:
    message = icmp_header + packet[: ANSWER_MAX_BYTES[6] - IPV6_HEADER_BYTES - ICMP_HEADER_BYTES]
    ends = own_address.packed + packet[8:24]
    pseudo_header = ends + len(message).to_bytes(4, "big") + bytes([0, 0, 0, ICMPV6])
    message = message[:2] + checksum(pseudo_header + message).to_bytes(2, "big") + message[4:]
    return b"\x60\0\0\0" + len(message).to_bytes(2, "big") + bytes([ICMPV6, ANSWER_TTL]) + ends + message
