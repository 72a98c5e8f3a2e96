"""Captured packets as the agent hands them out: its records, and what can be read of the packets in them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple, TypedDict

from flannel_udp.model import Address

RECORD = struct.Struct("=IIQIHHBBBBBBHH6x16s16s")
"""`Record` in _fastpath/capture_ring.pxd; a test compares the two."""
_UDP, _IPIP = 17, 4
_VXLAN_HEADING_BYTES = 22
_EXTENSION_HEADERS = {0, 43, 60}
_FRAGMENT_HEADER = 44
_MAY_FRAGMENT = 1
_TTL = 64


class _Record(NamedTuple):
    n_record: int
    kept: int
    time_ns: int
    n_bytes: int
    segment_bytes: int
    n: int
    place: int
    reason: int
    version: int
    encapsulation: int
    outer_tos: int
    flags: int
    source_port: int
    destination_port: int
    own: bytes
    peer: bytes


class Head(TypedDict):
    """What the agent says before it sends parts; lists are by the numbers that records have."""

    version: str
    pid: int
    record_bytes: int
    places: list[str]
    encapsulations: list[str]
    reasons: list[str]
    sentences: list[str]


class Counts(TypedDict):
    """What stands in front of a part's records: their bytes; how many packets were to be noted, and lost, by place."""

    bytes: int
    taken: list[int]
    lost: list[int]


@dataclass(frozen=True, slots=True)
class Inner:
    """What the inner header says; `ports`, `flags` and `kind` are there for TCP and UDP, TCP, ICMP."""

    source: Address
    destination: Address
    protocol: int
    n_bytes: int
    fragment_at: int = 0
    """Where in the packet that was fragmented this fragment begins, in bytes."""
    ports: tuple[int, int] | None = None
    flags: int | None = None
    kind: int | None = None


class Captured(NamedTuple):
    """One packet at one place. Outer ones have no outer header in `data` but IP-in-IP's that came in: see `frame`."""

    time_ns: int
    place: str
    reason: str
    """Why it was dropped, ``keep`` if it was not."""
    version: int
    encapsulation: str
    n_bytes: int
    """Of the packet; of an outer one without what the kernel writes in front."""
    segment_bytes: int
    """A super-packet's: payload of each of its segments, 0: it is none."""
    n: int
    """Packets that were lost together, or joined in this one."""
    outer_tos: int
    may_fragment: bool
    ports: tuple[int, int]
    own: Address | None
    peer: Address | None
    data: bytes

    @property
    def is_out(self) -> bool:
        """Whether it goes to the underlay."""
        return self.place.startswith("out")

    @property
    def is_outer(self) -> bool:
        """Whether it was seen on the underlay's side."""
        return self.place.endswith("outer")

    @property
    def dropped(self) -> bool:
        """Whether it went no further."""
        return self.reason != "keep"

    def frame(self) -> tuple[bytes, int]:
        """Return the IP packet as far as it was kept, and how long it was.

        Of an outer one the header is written here, as the kernel writes it or has taken it off: identification and UDP
        checksum are 0, for nobody tells us, and its TTL is what Linux begins with.
        """
        if not self.is_outer or (self.encapsulation == "ipip" and not self.is_out):
            return self.data, self.n_bytes
        header = self._outer_header()
        return header + self.data, len(header) + self.n_bytes

    def _outer_header(self) -> bytes:
        ends = (self.own, self.peer) if self.is_out else (self.peer, self.own)
        source, destination = (_packed(end, self.version) for end in ends)
        n_bytes, protocol, udp = self.n_bytes, _IPIP, b""
        if self.encapsulation != "ipip":
            n_bytes, protocol = n_bytes + 8, _UDP
            udp = struct.pack("!HHHH", *self.ports, n_bytes & 0xFFFF, 0)
        if self.version == 6:
            first = 6 << 28 | self.outer_tos << 20
            return struct.pack("!IHBB", first, n_bytes & 0xFFFF, protocol, _TTL) + source + destination + udp
        flags = 0 if self.may_fragment else 0x4000
        fields = (0x45, self.outer_tos, (n_bytes + 20) & 0xFFFF, 0, flags, _TTL, protocol)
        checksum = _checksum(struct.pack("!BBHHHBBH", *fields, 0) + source + destination)
        return struct.pack("!BBHHHBBH", *fields, checksum) + source + destination + udp

    def inner(self) -> Inner | None:
        """Return what its inner header says, ``None`` where there is none that could be read."""
        data, n_bytes, skip = self.data, self.n_bytes, 0
        if self.is_outer and self.encapsulation == "vxlan":
            skip = _VXLAN_HEADING_BYTES
        elif self.is_outer and self.encapsulation == "ipip" and not self.is_out and data:
            skip = (data[0] & 0xF) * 4
        return read_inner(data[skip:], n_bytes - skip)


def read_records(head: Head, records: bytes) -> Iterator[Captured]:
    """Yield the packets of a part. Raises `ValueError` where that makes no sense."""
    at = 0
    try:
        while at < len(records):
            record = _Record._make(RECORD.unpack_from(records, at))
            start = at + head["record_bytes"]
            if record.n_record < head["record_bytes"] + record.kept:
                raise ValueError("a record is shorter than what it holds")
            yield Captured(
                record.time_ns,
                head["places"][record.place],
                head["reasons"][record.reason],
                record.version,
                head["encapsulations"][record.encapsulation],
                record.n_bytes,
                record.segment_bytes,
                record.n,
                record.outer_tos,
                bool(record.flags & _MAY_FRAGMENT),
                (record.source_port, record.destination_port),
                _address(record.own, record.version),
                _address(record.peer, record.version),
                records[start : start + record.kept],
            )
            at += record.n_record
    except (struct.error, IndexError) as error:
        raise ValueError("records that make no sense") from error


def read_inner(data: bytes, n_bytes: int) -> Inner | None:
    """Return what an IP header says (RFC 791 3.1, RFC 8200 3), and as far as it is there what is behind it."""
    version = data[0] >> 4 if data else 0
    if version == 4 and len(data) >= 20:
        fragment, protocol = (int.from_bytes(data[6:8]) & 0x1FFF) * 8, data[9]
        start, ends = (data[0] & 0xF) * 4, (IPv4Address(data[12:16]), IPv4Address(data[16:20]))
        return _with_transport(data, start, Inner(*ends, protocol, n_bytes, fragment))
    if version == 6 and len(data) >= 40:
        ends6 = IPv6Address(data[8:24]), IPv6Address(data[24:40])
        protocol, start, fragment = _behind_extensions(data, data[6], 40)
        return _with_transport(data, start, Inner(*ends6, protocol, n_bytes, fragment))
    return None


def _behind_extensions(data: bytes, protocol: int, start: int) -> tuple[int, int, int]:
    """Return the transport's protocol, where it begins, and where the fragment does (RFC 8200 section 4)."""
    fragment = 0
    while protocol in (*_EXTENSION_HEADERS, _FRAGMENT_HEADER) and start + 8 <= len(data) and not fragment:
        if protocol == _FRAGMENT_HEADER:
            fragment, n_bytes = int.from_bytes(data[start + 2 : start + 4]) & 0xFFF8, 8
        else:
            n_bytes = (data[start + 1] + 1) * 8
        protocol, start = data[start], start + n_bytes
    return protocol, start, fragment


def _with_transport(data: bytes, start: int, inner: Inner) -> Inner:
    if inner.fragment_at or start < 20:
        return inner
    facts = (inner.source, inner.destination, inner.protocol, inner.n_bytes, 0)
    if inner.protocol in (6, 17) and len(data) >= start + 4:
        ports = int.from_bytes(data[start : start + 2]), int.from_bytes(data[start + 2 : start + 4])
        flags = data[start + 13] if inner.protocol == 6 and len(data) >= start + 14 else None
        return Inner(*facts, ports=ports, flags=flags)
    if inner.protocol in (1, 58) and len(data) > start:
        return Inner(*facts, kind=data[start])
    return inner


@lru_cache(maxsize=1_000)
def _address(packed: bytes, version: int) -> Address | None:
    if not any(packed):
        return None
    return IPv6Address(packed) if version == 6 else IPv4Address(packed[:4])


def _packed(address: Address | None, version: int) -> bytes:
    return bytes(16 if version == 6 else 4) if address is None else address.packed


def _checksum(header: bytes) -> int:
    """Return the checksum of a header whose field for it is 0 (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(header) // 2}H", header))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF
