"""The pure-Python twin of the packet path: slow, obvious, and the tests' oracle.

It shares no code with `flannel_udp._fastpath`: look-ups scan every prefix, checksums are computed anew, never patched.
Drop reasons are named as the engine's counters name them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network

HEADER_BYTES = 20
ICMP_ERROR_MAX_BYTES = 576  # RFC 1812 section 4.3.2.3
ICMP_ERROR_TYPES = frozenset({3, 4, 5, 11, 12})
OWN = "own"


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
    total = sum(int.from_bytes(padded[i : i + 2], "big") for i in range(0, len(padded), 2))
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


def inbound(datagram: bytes, sender: IPv4Address, table: ReferenceTable, source_check: str) -> Forwarded | Dropped:
    """Decide on a datagram's payload from an underlay address."""
    malformed = fault_of(datagram)
    if malformed:
        return Dropped(malformed)
    if source_check in ("loose", "strict") and not table.is_peer(sender):
        return Dropped("unknown_peer")
    owner = table.lookup(IPv4Address(datagram[12:16]))
    if source_check == "strict" and owner not in (None, sender):
        return Dropped("spoofed_source")
    if table.lookup(IPv4Address(datagram[16:20])) != OWN:
        return Dropped("not_our_subnet")
    if datagram[8] <= 1:
        return Dropped("ttl_expired", icmp_answer(datagram, "ttl_expired", table.own_address))
    return Forwarded(with_ttl(datagram, datagram[8] - 1), None)


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
    return not any(address in IPv4Network(block) for block in ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3"))


def with_ttl(packet: bytes, ttl: int) -> bytes:
    """Return the packet with another TTL and its header checksum computed anew."""
    header_len = (packet[0] & 15) * 4
    header = packet[:8] + bytes([ttl]) + packet[9:10] + b"\0\0" + packet[12:header_len]
    return header[:10] + checksum(header).to_bytes(2, "big") + header[12:] + packet[header_len:]


def icmp_answer(packet: bytes, reason: str, own_address: IPv4Address | None) -> bytes | None:
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
    message = bytes([kind, 0, 0, 0, 0, 0, 0, 0]) + quoted
    message = message[:2] + checksum(message).to_bytes(2, "big") + message[4:]
    header = (
        bytes([0x45, (packet[1] & 0x1E) | 0xC0])
        + (HEADER_BYTES + len(message)).to_bytes(2, "big")
        + bytes([0, 0, 0, 0, 64, 1, 0, 0])
        + own_address.packed
        + packet[12:16]
    )
    return header[:10] + checksum(header).to_bytes(2, "big") + header[12:] + message
