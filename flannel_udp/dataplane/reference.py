"""The pure-Python twin of the packet path: slow, obvious, and the tests' oracle.

It shares no code with `flannel_udp._fastpath`: look-ups scan every prefix, checksums are computed anew, never patched.
Drop reasons are named as the engine's counters name them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import ClassVar

HEADER_BYTES = 20
ICMP_ERROR_MAX_BYTES = 576  # RFC 1812 section 4.3.2.3
ICMP_ERROR_TYPES = frozenset({3, 4, 5, 11, 12})
OWN = "own"
# RFC 6040 section 4.2, figure 4: inner ECN field, and outer one (Not-ECT, ECT(1), ECT(0), CE) to the new inner.
DECAPSULATED_ECN = {0: (0, 0, 0, None), 1: (1, 1, 1, 3), 2: (2, 1, 2, 3), 3: (3, 3, 3, 3)}
NOT_UNICAST = (IPv4Network("0.0.0.0/8"), IPv4Network("127.0.0.0/8"), IPv4Network("224.0.0.0/3"))


@dataclass
class ReferenceTable:
    """Overlay prefixes, each to a peer's public IP or to `OWN`; `own_address` is flannel0's."""

    routes: dict[IPv4Network, IPv4Address | str] = field(default_factory=dict)
    own_address: IPv4Address | None = None

    def lookup(self, address: IPv4Address) -> IPv4Address | str | None:
        """Return what the longest prefix that covers the address leads to."""
        covering = [prefix for prefix in self.routes if address in prefix]
        return self.routes[max(covering, key=lambda prefix: prefix.prefixlen)] if covering else None

    def is_peer(self, address: IPv4Address) -> bool:
        """Tell whether an underlay address is a registered peer's."""
        return address in self.routes.values()


@dataclass(frozen=True)
class Forwarded:
    """The packet goes on: to a peer's public IP, or (inbound) to the TUN with `to` None."""

    packet: bytes
    to: IPv4Address | None


@dataclass(frozen=True)
class Dropped:
    """The packet is dropped, and `answer` is the ICMP packet that its sender gets, if any."""

    reason: str
    answer: bytes | None = None


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    padded = data + bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def outbound(packet: bytes, table: ReferenceTable) -> Forwarded | Dropped:
    """Decide on a packet from the TUN."""
    malformed = fault_of(packet)
    if malformed:
        return Dropped(malformed)
    destination = IPv4Address(packet[16:20])
    if not is_unicast(destination):
        return Dropped("not_unicast")
    next_hop = table.lookup(destination)
    if next_hop is None:
        return Dropped("no_route", icmp_answer(packet, "no_route", table.own_address))
    if not isinstance(next_hop, IPv4Address):
        return Dropped("own_subnet", icmp_answer(packet, "own_subnet", table.own_address))
    if packet[8] <= 1:
        return Dropped("ttl_expired", icmp_answer(packet, "ttl_expired", table.own_address))
    return Forwarded(with_ttl(packet, packet[8] - 1), next_hop)


def inbound(
    datagram: bytes, sender: IPv4Address, table: ReferenceTable, source_check: str, outer_tos: int = 0
) -> Forwarded | Dropped:
    """Decide on a datagram's payload from an underlay address; `outer_tos` is its IPv4 header's second byte."""
    refused = fault_of(datagram) or refusal_of(datagram, sender, table, source_check)
    if refused:
        return Dropped(refused)
    ecn = DECAPSULATED_ECN[datagram[1] & 3][outer_tos & 3]
    if ecn is None:
        return Dropped("congestion_lost")
    datagram = with_ttl(datagram[:1] + bytes([datagram[1] & 0xFC | ecn]) + datagram[2:], datagram[8])
    if datagram[8] <= 1:
        return Dropped("ttl_expired", icmp_answer(datagram, "ttl_expired", table.own_address))
    return Forwarded(with_ttl(datagram, datagram[8] - 1), None)


def refusal_of(datagram: bytes, sender: IPv4Address, table: ReferenceTable, source_check: str) -> str | None:
    """Return why a well-formed packet from an underlay address is not for us, or None."""
    if source_check in ("loose", "strict") and not table.is_peer(sender):
        return "unknown_peer"
    owner = table.lookup(IPv4Address(datagram[12:16]))
    if source_check == "strict" and owner not in (None, sender):
        return "spoofed_source"
    if table.lookup(IPv4Address(datagram[16:20])) != OWN:
        return "not_our_subnet"
    return None


def fault_of(packet: bytes) -> str | None:
    """Return what is malformed about an IPv4 packet, or None (RFC 1812 section 5.2.2)."""
    if len(packet) < HEADER_BYTES:
        return "too_short"
    if packet[0] >> 4 != 4:
        return "not_ipv4"
    header_len = (packet[0] & 15) * 4
    if not HEADER_BYTES <= header_len <= len(packet):
        return "bad_header_len"
    if int.from_bytes(packet[2:4], "big") != len(packet):
        return "bad_total_len"
    if checksum(packet[:header_len]) != 0:
        return "bad_header_checksum"
    return None


def is_unicast(address: IPv4Address) -> bool:
    """Tell whether a single host may have this address."""
    return not any(address in block for block in NOT_UNICAST)


def with_ttl(packet: bytes, ttl: int) -> bytes:
    """Return the packet with another TTL and its header checksum computed anew."""
    header_len = (packet[0] & 15) * 4
    header = packet[:8] + bytes([ttl]) + packet[9:10] + b"\0\0" + packet[12:header_len]
    return header[:10] + checksum(header).to_bytes(2, "big") + header[12:] + packet[header_len:]


def icmp_answer(packet: bytes, reason: str, own_address: IPv4Address | None, mtu: int = 0) -> bytes | None:
    """Return the ICMP error about a well-formed packet, or None where none may be sent (RFC 1812 section 4.3.2.7)."""
    header_len = (packet[0] & 15) * 4
    source, destination = IPv4Address(packet[12:16]), IPv4Address(packet[16:20])
    is_later_fragment = int.from_bytes(packet[6:8], "big") & 0x1FFF
    if own_address is None or is_later_fragment or not is_unicast(source) or not is_unicast(destination):
        return None
    if packet[9] == 1 and (len(packet) == header_len or packet[header_len] in ICMP_ERROR_TYPES):
        return None
    quoted = packet[: ICMP_ERROR_MAX_BYTES - HEADER_BYTES - 8]
    kind = 11 if reason == "ttl_expired" else 3
    code = 4 if reason == "too_big" else 0
    message = bytes([kind, code, 0, 0, 0, 0]) + mtu.to_bytes(2, "big") + quoted
    message = message[:2] + checksum(message).to_bytes(2, "big") + message[4:]
    header = (
        bytes([0x45, (packet[1] & 0x1E) | 0xC0])
        + (HEADER_BYTES + len(message)).to_bytes(2, "big")
        + bytes([0, 0, 0, 0, 64, 1, 0, 0])
        + own_address.packed
        + packet[12:16]
    )
    return header[:10] + checksum(header).to_bytes(2, "big") + header[12:] + message


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


def expand(vnet: VnetHeader, packet: bytes) -> list[bytes] | None:
    """Return the packets that a (super-)packet of the TUN stands for, or None where the header cannot be right.

    Linux, Documentation/networking/segmentation-offloads.rst.
    """
    if vnet.gso_type == 0:
        if not vnet.flags & 1:
            return [packet]
        place = vnet.csum_start + vnet.csum_offset
        if place + 2 > len(packet) or vnet.csum_start < (packet[0] & 15) * 4:
            return None
        field_ = checksum(packet[vnet.csum_start :])  # the pseudo-header's sum is in the field already
        if field_ == 0 and vnet.csum_offset == 6:  # where UDP's is, in whatever header the packet has in it
            field_ = 0xFFFF
        return [packet[:place] + field_.to_bytes(2, "big") + packet[place + 2 :]]
    ip_len = (packet[0] & 15) * 4
    protocol = {1: 6, 5: 17}.get(vnet.gso_type & 0x7F)
    l4_len = {6: (packet[ip_len + 12] >> 4) * 4 if len(packet) >= ip_len + 20 else 0, 17: 8}.get(packet[9], 0)
    payload = packet[ip_len + l4_len :]
    is_fragment = int.from_bytes(packet[6:8], "big") & 0x3FFF
    if protocol != packet[9] or l4_len < (20 if protocol == 6 else 8) or not payload or not vnet.gso_size:
        return None
    if is_fragment or ip_len + l4_len + vnet.gso_size > 65_507:
        return None
    starts = range(0, len(payload), vnet.gso_size)
    return [
        _segment(packet, (ip_len, l4_len), start, payload[start : start + vnet.gso_size], i)
        for i, start in enumerate(starts)
    ]


def _segment(packet: bytes, lens: tuple[int, int], start: int, payload: bytes, i: int) -> bytes:
    ip_len, l4_len = lens
    ip, l4 = bytearray(packet[:ip_len]), bytearray(packet[ip_len : ip_len + l4_len])
    is_last = ip_len + l4_len + start + len(payload) == len(packet)
    ip[2:4] = (ip_len + l4_len + len(payload)).to_bytes(2, "big")
    ip[4:6] = ((int.from_bytes(ip[4:6], "big") + i) % 2**16).to_bytes(2, "big")
    ip[10:12] = b"\0\0"
    ip[10:12] = checksum(bytes(ip)).to_bytes(2, "big")
    if packet[9] == 6:
        l4[4:8] = ((int.from_bytes(l4[4:8], "big") + start) % 2**32).to_bytes(4, "big")
        l4[13] &= 0xFF if is_last else ~0x09 & 0xFF  # FIN and PSH on the last only
        l4[13] &= 0xFF if i == 0 else ~0x80 & 0xFF  # CWR on the first only
    else:
        l4[4:6] = (8 + len(payload)).to_bytes(2, "big")
    place = 16 if packet[9] == 6 else 6
    l4[place : place + 2] = b"\0\0"
    pseudo = bytes(ip[12:20]) + bytes([0, packet[9]]) + (l4_len + len(payload)).to_bytes(2, "big")
    field_ = checksum(pseudo + bytes(l4) + payload)
    l4[place : place + 2] = (0xFFFF if field_ == 0 and packet[9] == 17 else field_).to_bytes(2, "big")
    return bytes(ip) + bytes(l4) + payload
