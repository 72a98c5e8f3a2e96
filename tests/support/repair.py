"""Right lengths and checksums for packets of either version: no random change would ever find them."""

from __future__ import annotations

from flannel_udp.dataplane import reference
from flannel_udp.dataplane.reference import Headers

TCP, UDP = 6, 17
CHECKSUM_AT = {TCP: 16, UDP: 6}


def repaired(packet: bytes, transport_too: bool) -> bytes:
    """Return the packet with the right version, length and checksums. What calls itself IPv6 stays that."""
    is_ipv6 = reference.version_of(packet) == 6
    packet = _with_right_ipv6_length(packet) if is_ipv6 else _with_right_ipv4_length(packet)
    if len(packet) < reference.HEADER_BYTES or (not is_ipv6 and len(packet) < (packet[0] & 15) * 4):
        return packet
    if not is_ipv6:
        packet = reference.with_ttl(packet, packet[8])
    if transport_too and not reference.fault_of(packet, 6 if is_ipv6 else 4):
        return with_right_checksum(packet)
    return packet


def _with_right_ipv4_length(packet: bytes) -> bytes:
    if len(packet) < reference.HEADER_BYTES:
        return packet
    words = max(packet[0] & 15, 5)
    return bytes([0x40 | words]) + packet[1:2] + len(packet).to_bytes(2, "big") + packet[4:]


def _with_right_ipv6_length(packet: bytes) -> bytes:
    if len(packet) < reference.IPV6_HEADER_BYTES:
        return packet
    return packet[:4] + (len(packet) - reference.IPV6_HEADER_BYTES).to_bytes(2, "big") + packet[6:]


def with_right_checksum(packet: bytes) -> bytes:
    """Return a well-formed packet with the right TCP or UDP checksum, and length in the UDP header, if it has one."""
    headers = reference.headers_of(packet)
    start, place = headers.transport_at, _checksum_place(packet, headers)
    if place == 0:
        return packet
    if headers.protocol == UDP:
        packet = packet[: start + 4] + (len(packet) - start).to_bytes(2, "big") + packet[start + 6 :]
    blank = packet[:place] + b"\0\0" + packet[place + 2 :]
    value = reference.checksum(reference.pseudo_header(headers, len(packet) - start) + blank[start:])
    value = 0xFFFF if value == 0 and headers.protocol == UDP else value
    return packet[:place] + value.to_bytes(2, "big") + packet[place + 2 :]


def with_partial_checksum(packet: bytes) -> bytes:
    """Return the packet as a host with checksum offload hands it over: the pseudo-header's sum, uncomplemented.

    What is not well-formed, or has no TCP or UDP header, stays as it is.
    """
    if reference.fault_of(packet, reference.version_of(packet)):
        return packet
    headers = reference.headers_of(packet)
    place = _checksum_place(packet, headers)
    if place == 0:
        return packet
    pseudo_header = reference.pseudo_header(headers, len(packet) - headers.transport_at)
    return packet[:place] + (~reference.checksum(pseudo_header) & 0xFFFF).to_bytes(2, "big") + packet[place + 2 :]


def _checksum_place(packet: bytes, headers: Headers) -> int:
    """Return where the transport's checksum is; 0: there is none."""
    place = headers.transport_at + CHECKSUM_AT.get(headers.protocol, 0)
    is_there = headers.has_transport and headers.protocol in CHECKSUM_AT and len(packet) >= place + 2
    return place if is_there else 0
