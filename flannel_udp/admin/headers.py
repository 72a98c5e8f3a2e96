"""Reads the headers of a packet field by field, for people: offset, bytes, what they say. Pure.

Headers are RFC 791 (IPv4), 8200 (IPv6), 768 (UDP), 9293 (TCP), 792 and 4443 (ICMP), 7348 (VXLAN).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from ipaddress import IPv4Address, IPv6Address

from flannel_udp.admin.trace_shapes import TraceField, TraceHeader, TracePacket

PROTOCOL_NAMES = {1: "ICMP", 4: "IP in IP", 6: "TCP", 17: "UDP", 58: "ICMPv6"}
_ECN = ("not ECN-capable", "ECT(1)", "ECT(0)", "congestion experienced")
_ICMP_TYPES = {0: "echo reply", 3: "destination unreachable", 8: "echo request", 11: "time exceeded"}
_ICMPV6_TYPES = {
    1: "destination unreachable",
    2: "packet too big",
    3: "time exceeded",
    128: "echo request",
    129: "echo reply",
}
_ICMP_CODES = {(3, 0): "network unreachable", (3, 1): "host unreachable", (3, 3): "port unreachable"}
_ICMP_CODES |= {(3, 4): "fragmentation needed and DF set", (11, 0): "TTL exceeded in transit"}
_ICMPV6_CODES = {(1, 0): "no route to the destination", (1, 3): "address unreachable", (3, 0): "hop limit exceeded"}
_TCP_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR")

_Reader = Callable[["_Cursor"], str | None]
"""Reads a header; returns the name of the next one's reader, ``None`` where the rest is payload."""


def packet_of(data: bytes, tunnel: str | None = None, chosen: Collection[str] = ()) -> TracePacket:
    """Return the packet that begins with an IP header.

    `tunnel` is what is put in front where this is an outer packet: ``udp``, ``vxlan`` or ``ipip``. `chosen` are the
    fields that the kernel fills in as it sends: "outer IPv4 identification", say.
    """
    return TracePacket(bytes=len(data), hex=data.hex(), headers=list(read_headers(data, tunnel, chosen)))


def read_headers(data: bytes, tunnel: str | None, chosen: Collection[str]) -> Iterator[TraceHeader]:
    """Yield the headers from the first byte on; what is cut short, or not known, is payload."""
    cursor = _Cursor(data, tunnel, chosen)
    reader: str | None = f"IPv{data[0] >> 4}" if data else None
    while reader is not None:
        header = cursor.begin(reader)
        try:
            reader = _READERS[reader](cursor)
        except (IndexError, KeyError):
            return
        header["bytes"] = cursor.at - header["offset"]
        yield header


class _Cursor:
    """Where in a packet the reader is."""

    def __init__(self, data: bytes, tunnel: str | None, chosen: Collection[str]) -> None:
        self.data = data
        self.at = 0
        self.tunnel = tunnel
        """Of the outer headers, ``None`` behind them."""
        self._place = "" if tunnel is None else "outer "
        self._chosen = chosen
        self._header: TraceHeader = {"name": "", "offset": 0, "bytes": 0, "fields": []}

    def begin(self, name: str) -> TraceHeader:
        """Start a header."""
        place = "" if name == "VXLAN" else self._place
        self._header = {"name": f"{place}{name}", "offset": self.at, "bytes": 0, "fields": []}
        return self._header

    def enter(self) -> None:
        """Let what follows be inside the tunnel."""
        self.tunnel, self._place = None, "inner "

    def take(self, name: str, n_bytes: int, say: Callable[[int], str] = str, meaning: str = "") -> int:
        """Note the next field and return its number. Raises `IndexError` past the end."""
        raw = self.data[self.at : self.at + n_bytes]
        if len(raw) < n_bytes:
            raise IndexError
        number = int.from_bytes(raw, "big")
        chosen = f"{self._header['name']} {name}" in self._chosen
        self._header["fields"].append(
            TraceField(
                name=name,
                offset=self.at,
                bytes=n_bytes,
                hex=None if chosen else raw.hex(),
                value="the kernel's choice" if chosen else say(number),
                meaning=meaning,
            )
        )
        self.at += n_bytes
        return number


def _ipv4(cursor: _Cursor) -> str | None:
    first = cursor.take(
        "version, header length", 1, lambda n: f"{n >> 4}, {(n & 15) * 4} bytes", "IHL counts words of 4 bytes"
    )
    cursor.take("TOS", 1, _tos, "DSCP (6 bits) and ECN (2 bits)")
    cursor.take("total length", 2, meaning="header and payload, bytes")
    cursor.take("identification", 2, hex, "the fragments of one packet share it")
    cursor.take("flags, fragment offset", 2, _fragment)
    cursor.take("TTL", 1, meaning="each router takes one")
    protocol = cursor.take("protocol", 1, _protocol, "what follows this header")
    cursor.take("header checksum", 2, hex, "RFC 1071, over this header alone")
    cursor.take("source", 4, _address4)
    cursor.take("destination", 4, _address4)
    if (options := (first & 15) * 4 - 20) > 0:
        cursor.take("options", options, hex)
    fragment = int.from_bytes(cursor.data[cursor.at - 14 - options : cursor.at - 12 - options], "big") & 0x1FFF
    return None if fragment else _behind_ip(cursor, protocol)


def _ipv6(cursor: _Cursor) -> str | None:
    cursor.take(
        "version, class, flow label",
        4,
        lambda n: f"{n >> 28}, {_tos(n >> 20 & 255)}, {n & 0xFFFFF:#07x}",
        "the class is IPv4's TOS",
    )
    cursor.take("payload length", 2, meaning="what follows this header, bytes")
    protocol = cursor.take("next header", 1, _protocol)
    cursor.take("hop limit", 1, meaning="IPv4's TTL: each router takes one")
    cursor.take("source", 16, _address6)
    cursor.take("destination", 16, _address6)
    return _behind_ip(cursor, protocol)


def _behind_ip(cursor: _Cursor, protocol: int) -> str | None:
    if protocol == 4:
        cursor.enter()
        return f"IPv{cursor.data[cursor.at] >> 4}"
    name = PROTOCOL_NAMES.get(protocol)
    return name if name in _READERS else None


def _udp(cursor: _Cursor) -> str | None:
    cursor.take("source port", 2)
    cursor.take("destination port", 2)
    cursor.take("length", 2, meaning="this header and what follows, bytes")
    cursor.take("checksum", 2, hex, "over addresses, ports and payload; 0: none")
    if cursor.tunnel == "vxlan":
        return "VXLAN"
    if cursor.tunnel == "udp":
        cursor.enter()
        return f"IPv{cursor.data[cursor.at] >> 4}"
    return None


def _vxlan(cursor: _Cursor) -> str | None:
    cursor.take("flags", 1, hex, "0x08: the VNI is valid")
    cursor.take("reserved", 3, hex)
    cursor.take("VNI", 3, meaning="which overlay network")
    cursor.take("reserved", 1, hex)
    cursor.enter()
    return "Ethernet"


def _ethernet(cursor: _Cursor) -> str | None:
    cursor.take("destination MAC", 6, _mac, "the peer's VtepMAC, from its lease")
    cursor.take("source MAC", 6, _mac, "ours")
    kind = cursor.take("type", 2, hex, "0x0800: IPv4, 0x86dd: IPv6")
    return {0x0800: "IPv4", 0x86DD: "IPv6"}.get(kind)


def _tcp(cursor: _Cursor) -> None:
    cursor.take("source port", 2)
    cursor.take("destination port", 2)
    cursor.take("sequence number", 4)
    cursor.take("acknowledgment number", 4)
    offset = cursor.take("data offset", 1, lambda n: f"{(n >> 4) * 4} bytes", "the header's length") >> 4
    cursor.take("flags", 1, lambda n: " ".join(name for i, name in enumerate(_TCP_FLAGS) if n >> i & 1) or "none")
    cursor.take("window", 2)
    cursor.take("checksum", 2, hex, "over addresses, this header and payload")
    cursor.take("urgent pointer", 2)
    if offset > 5:
        cursor.take("options", offset * 4 - 20, hex)


def _icmp(cursor: _Cursor) -> None:
    _icmp_of(cursor, _ICMP_TYPES, _ICMP_CODES, told={3: "MTU of the next hop"})


def _icmpv6(cursor: _Cursor) -> None:
    _icmp_of(cursor, _ICMPV6_TYPES, _ICMPV6_CODES, told={2: "MTU"})


def _icmp_of(cursor: _Cursor, types: dict[int, str], codes: dict[tuple[int, int], str], told: dict[int, str]) -> None:
    kind = cursor.take("type", 1, lambda n: f"{n}, {types.get(n, 'another')}")
    cursor.take("code", 1, lambda n: f"{n}, {codes[kind, n]}" if (kind, n) in codes else str(n))
    cursor.take("checksum", 2, hex)
    if types.get(kind, "").startswith("echo"):
        cursor.take("identifier", 2, hex)
        cursor.take("sequence number", 2)
    elif kind in told:
        cursor.take(told[kind], 4, meaning="what would fit, bytes; 0: not told")
    else:
        cursor.take("unused", 4, hex)


_READERS: dict[str, _Reader] = {
    "IPv4": _ipv4,
    "IPv6": _ipv6,
    "UDP": _udp,
    "TCP": _tcp,
    "ICMP": _icmp,
    "ICMPv6": _icmpv6,
    "VXLAN": _vxlan,
    "Ethernet": _ethernet,
}


def _tos(tos: int) -> str:
    return f"DSCP {tos >> 2}, {_ECN[tos & 3]}"


def _fragment(word: int) -> str:
    flags = [name for bit, name in ((0x4000, "DF"), (0x2000, "MF")) if word & bit]
    return f"{' '.join(flags) or 'no flag'}, offset {(word & 0x1FFF) * 8}"


def _protocol(number: int) -> str:
    return f"{number}, {PROTOCOL_NAMES[number]}" if number in PROTOCOL_NAMES else str(number)


def _address4(number: int) -> str:
    return str(IPv4Address(number))


def _address6(number: int) -> str:
    return str(IPv6Address(number))


def _mac(number: int) -> str:
    return number.to_bytes(6, "big").hex(":")
