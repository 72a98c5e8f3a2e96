"""What is left to a network card: super-packets to cut, checksums to finish.

Linux, Documentation/networking/segmentation-offloads.rst.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar

from flannel_udp.dataplane.reference.packets import (
    IPV6_HEADER_BYTES,
    Headers,
    checksum,
    headers_of,
    pseudo_header,
    with_ttl,
)

TCP, UDP = 6, 17
CUT_MAX = 1280  # bytes of a segment of TCP that came uncut, whatever the tunnel's MTU: a pod's may be smaller
CHECKSUM_OFFSET = {TCP: 16, UDP: 6}
# linux/virtio_net.h: VIRTIO_NET_HDR_GSO_TCPV4, _TCPV6 and _UDP_L4, which is for both versions.
GSO_TYPE = {(4, TCP): 1, (6, TCP): 4, (4, UDP): 5, (6, UDP): 5}


@dataclass(frozen=True)
class VnetHeader:
    """The virtio-net header in front of a packet on the TUN (native byte order; 10 bytes)."""

    flags: int = 0
    gso_type: int = 0
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("=BBHHHH")

    def pack(self) -> bytes:
        """Return the header's bytes."""
        return self.LAYOUT.pack(
            self.flags, self.gso_type, self.hdr_len, self.gso_size, self.csum_start, self.csum_offset
        )

    @classmethod
    def unpack(cls, data: bytes) -> VnetHeader:
        """Read a header from the start of `data`."""
        return cls(*cls.LAYOUT.unpack_from(data))


def transport_header_len(packet: bytes, headers: Headers) -> int:
    """Return how long the TCP or UDP header is; 0 where there is no whole one, or not all of its data is here."""
    transport = packet[headers.transport_at :]
    least = {TCP: 20, UDP: 8}.get(headers.protocol, 0)
    if not headers.plain or not least or len(transport) < least:
        return 0
    said = (transport[12] >> 4) * 4 if headers.protocol == TCP else least
    return said if least <= said <= len(transport) else 0


def expand(vnet: VnetHeader, packet: bytes, segment_max: int = 65_507) -> list[bytes] | None:
    """Return the packets that a (super-)packet of the TUN stands for, or None where the header cannot be right.

    `segment_max`: how long segments may be, by default what a UDP datagram holds.
    """
    if vnet.gso_type == 0:
        return [packet] if not vnet.flags & 1 else _with_finished_checksum(vnet, packet)
    headers = headers_of(packet)
    l4_len = transport_header_len(packet, headers)
    header_len = headers.transport_at + l4_len
    if not l4_len or GSO_TYPE[headers.version, headers.protocol] != vnet.gso_type & 0x7F:
        return None
    if not vnet.gso_size or header_len == len(packet) or header_len + vnet.gso_size > segment_max:
        return None
    starts = range(header_len, len(packet), vnet.gso_size)
    return [_segment(packet, headers, header_len, start, vnet.gso_size) for start in starts]


def _with_finished_checksum(vnet: VnetHeader, packet: bytes) -> list[bytes] | None:
    place = vnet.csum_start + vnet.csum_offset
    least = (packet[0] & 15) * 4 if packet[0] >> 4 == 4 else IPV6_HEADER_BYTES
    if place + 2 > len(packet) or vnet.csum_start < least:
        return None
    field = checksum(packet[vnet.csum_start :])  # the pseudo-header's sum is in the field already
    if field == 0 and vnet.csum_offset == CHECKSUM_OFFSET[UDP]:  # in whatever header the packet has in it
        field = 0xFFFF
    return [packet[:place] + field.to_bytes(2, "big") + packet[place + 2 :]]


def _segment(packet: bytes, headers: Headers, header_len: int, start: int, size: int) -> bytes:
    payload = packet[start : start + size]
    i, is_last = (start - header_len) // size, start + size >= len(packet)
    l4 = bytearray(packet[headers.transport_at : header_len])
    if headers.protocol == TCP:
        l4[4:8] = ((int.from_bytes(l4[4:8], "big") + start - header_len) % 2**32).to_bytes(4, "big")
        l4[13] &= 0xFF if is_last else ~0x09 & 0xFF  # FIN and PSH on the last only
        l4[13] &= 0xFF if i == 0 else ~0x80 & 0xFF  # CWR on the first only
    else:
        l4[4:6] = (8 + len(payload)).to_bytes(2, "big")
    place = CHECKSUM_OFFSET[headers.protocol]
    l4[place : place + 2] = b"\0\0"
    field = checksum(pseudo_header(headers, len(l4) + len(payload)) + bytes(l4) + payload)
    l4[place : place + 2] = (0xFFFF if field == 0 and headers.protocol == UDP else field).to_bytes(2, "big")
    return _ip_headers(packet[: headers.transport_at], len(l4) + len(payload), i) + bytes(l4) + payload


def _ip_headers(ip: bytes, transport_len: int, i: int) -> bytes:
    """Return the IP headers of the segment with number `i`, whose transport has so many bytes."""
    if ip[0] >> 4 == 6:
        payload_len = len(ip) - IPV6_HEADER_BYTES + transport_len
        return ip[:4] + payload_len.to_bytes(2, "big") + ip[6:]
    total_len = (len(ip) + transport_len).to_bytes(2, "big")
    identification = (int.from_bytes(ip[4:6], "big") + i) % 2**16
    return with_ttl(ip[:2] + total_len + identification.to_bytes(2, "big") + ip[6:], ip[8])


@dataclass(frozen=True)
class Finished:
    """The packets that one from a kernel peer stands for; whether its checksum was only begun, and it was uncut."""

    packets: list[bytes]
    partial: bool = False
    uncut: bool = False


def finished(packet: bytes, mtu: int, gso_size: int = 0) -> Finished:
    """Do to an accepted packet what a kernel peer has left to a network card.

    `gso_size`: what the kernel says of a UDP super-packet; TCP is one where it is longer than `mtu`.
    """
    headers = headers_of(packet)
    l4_len = transport_header_len(packet, headers)
    if not l4_len:
        return Finished([packet])
    ip_len, header_len = headers.transport_at, headers.transport_at + l4_len
    offset = CHECKSUM_OFFSET[headers.protocol]
    held = int.from_bytes(packet[ip_len + offset : ip_len + offset + 2], "big")
    if headers.protocol == UDP and held == 0:
        return Finished([packet])
    pseudo = pseudo_header(headers, len(packet) - ip_len)
    begun = ~checksum(pseudo) & 0xFFFF
    is_begun = held == begun or (held == 0 and begun == 0xFFFF)
    is_right = checksum(pseudo + packet[ip_len:]) == 0
    if headers.protocol == TCP:
        gso_size = max(min(mtu, CUT_MAX) - header_len, 0) if len(packet) > mtu else 0
    uncut = len(packet) - header_len > gso_size > 0
    if not (is_right or is_begun) or (is_right and not uncut):
        return Finished([packet])
    packet = packet[: ip_len + offset] + begun.to_bytes(2, "big") + packet[ip_len + offset + 2 :]
    vnet = VnetHeader(1, csum_start=ip_len, csum_offset=offset)
    if uncut:
        kind = GSO_TYPE[headers.version, headers.protocol]
        vnet = VnetHeader(1, kind, header_len, gso_size, ip_len, offset)
    return Finished(expand(vnet, packet) or [], not is_right, uncut)
