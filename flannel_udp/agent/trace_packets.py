"""Packets for `trace`: as their sender makes them, and as the kernel cuts them or puts a header in front. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from flannel_udp.admin.trace_request import HEADER_BYTES, ICMP, ICMPV6, TRANSPORT_BYTES, UDP, TraceRequest
from flannel_udp.backend.protocol import KernelWay
from flannel_udp.model import Address

IP_IN_IP = 4
DONT_FRAGMENT, MORE_FRAGMENTS = 0x4000, 0x2000
ETHERTYPES = {4: 0x0800, 6: 0x86DD}
VXLAN_HEADING_BYTES = 22
"""VXLAN's header and the inner Ethernet header."""
IDENTIFIER = 0x7472
"""Of the packet, and of an echo: not that of the agent's own, which the packet path knows by theirs."""
_ECHO_REQUEST = {ICMP: 8, ICMPV6: 128}
_SYN, _WINDOW = 0x02, 64_240


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    number = int.from_bytes(data + b"\0" * (len(data) % 2), "big")
    total = number % 0xFFFF or 0xFFFF * (number > 0)  # one's complement: 0x10000 is 1
    return total ^ 0xFFFF


def _with_checksum(packet: bytes, at: int, *before: bytes, never_0: bool = False) -> bytes:
    """Return it with its checksum, over `before` as well, in the two bytes from `at` on."""
    value = checksum(b"".join(before) + packet[:at] + b"\0\0" + packet[at + 2 :])
    return packet[:at] + (value or 0xFFFF * never_0).to_bytes(2, "big") + packet[at + 2 :]


def _pseudo_header(source: Address, destination: Address, protocol: int, n_bytes: int) -> bytes:
    ends = source.packed + destination.packed
    if source.version == 4:
        return ends + bytes([0, protocol]) + n_bytes.to_bytes(2, "big")
    return ends + n_bytes.to_bytes(4, "big") + bytes([0, 0, 0, protocol])


@dataclass(frozen=True, slots=True)
class Ip:
    """What an IP header says beside the length of what follows."""

    source: Address
    destination: Address
    protocol: int
    tos: int
    ttl: int
    df: bool
    identification: int = 0

    def in_front_of(self, payload: bytes) -> bytes:
        """Return a whole packet."""
        ends = self.source.packed + self.destination.packed
        if self.source.version == 6:
            first = (6 << 28 | self.tos << 20).to_bytes(4, "big")
            return first + len(payload).to_bytes(2, "big") + bytes([self.protocol, self.ttl]) + ends + payload
        length = (HEADER_BYTES[4] + len(payload)).to_bytes(2, "big")
        fragment = (DONT_FRAGMENT if self.df else 0).to_bytes(2, "big")
        head = bytes([0x45, self.tos]) + length + self.identification.to_bytes(2, "big") + fragment
        return _with_checksum(head + bytes([self.ttl, self.protocol, 0, 0]) + ends, 10) + payload


def udp_datagram(source: Address, destination: Address, ports: tuple[int, int], payload: bytes) -> bytes:
    """Return a UDP datagram with its checksum, to be put behind an IP header with these ends."""
    length = TRANSPORT_BYTES[UDP] + len(payload)
    head = b"".join(number.to_bytes(2, "big") for number in (*ports, length, 0))
    return _with_checksum(head + payload, 6, _pseudo_header(source, destination, UDP, length), never_0=True)


def make_packet(asked: TraceRequest) -> bytes:
    """Return the packet as its sender gives it: an echo request, a TCP SYN, a UDP datagram, or any payload."""
    version, protocol = asked.source.version, asked.protocol
    n_payload = asked.size - HEADER_BYTES[version] - TRANSPORT_BYTES.get(protocol, 0)
    payload = bytes(at & 0xFF for at in range(n_payload))
    ports = (asked.source_port or 0, asked.destination_port or 0)
    n_bytes = TRANSPORT_BYTES.get(protocol, 0) + n_payload
    pseudo_header = _pseudo_header(asked.source, asked.destination, protocol, n_bytes)
    match protocol:
        case 6:
            head = b"".join(port.to_bytes(2, "big") for port in ports) + bytes(8)
            head += bytes([5 << 4, _SYN]) + _WINDOW.to_bytes(2, "big") + bytes(4)
            body = _with_checksum(head + payload, 16, pseudo_header)
        case 17:
            body = udp_datagram(asked.source, asked.destination, ports, payload)
        case 1 | 58:
            echo = bytes([_ECHO_REQUEST[protocol], 0, 0, 0]) + IDENTIFIER.to_bytes(2, "big") + b"\0\1" + payload
            body = _with_checksum(echo, 2, b"" if protocol == ICMP else pseudo_header)
        case _:
            body = payload
    ip = Ip(asked.source, asked.destination, protocol, asked.tos, asked.ttl, asked.df, IDENTIFIER)
    return ip.in_front_of(body)


def with_one_hop_less(packet: bytes) -> bytes:
    """Return what a router passes on: the TTL, or hop limit, is one less."""
    if packet[0] >> 4 == 6:
        return packet[:7] + bytes([packet[7] - 1]) + packet[8:]
    return _with_checksum(packet[:8] + bytes([packet[8] - 1]) + packet[9:20], 10) + packet[20:]


def in_fragments(packet: bytes, mtu: int) -> Iterator[bytes]:
    """Yield the fragments of an IPv4 packet without options, as the kernel cuts it (RFC 791 section 3.2)."""
    head, payload = packet[: HEADER_BYTES[4]], packet[HEADER_BYTES[4] :]
    most = (mtu - len(head)) & ~7
    for at in range(0, len(payload), most):
        part = payload[at : at + most]
        fragment = at // 8 | (MORE_FRAGMENTS if at + most < len(payload) else 0)
        length = (len(head) + len(part)).to_bytes(2, "big")
        yield _with_checksum(head[:2] + length + head[4:6] + fragment.to_bytes(2, "big") + head[8:], 10) + part


@dataclass(frozen=True, slots=True)
class Outer:
    """An outer packet, and what of it the kernel fills in only as it sends: see `admin.headers.packet_of`."""

    packet: bytes
    chosen: frozenset[str]


def outer_packet(ip: Ip, payload: bytes, ports: tuple[int, int], *, alone: bool = True) -> Outer:
    """Return what the kernel makes of a payload that our socket sends; a source port of 0 it chooses itself.

    With "don't fragment" the IPv4 identification is 0 (linux, ip_select_ident_segs), but where it is not `alone` and
    the kernel cuts a run into datagrams, which it numbers. IPv6's flow label is made of the flow (auto_flowlabels).
    """
    chosen: set[str] = set()
    if ip.source.version == 6:
        chosen.add("outer IPv6 version, class, flow label")
    elif not (ip.df and alone):
        chosen |= {"outer IPv4 identification", "outer IPv4 header checksum"}
    if ip.protocol == UDP:
        payload = udp_datagram(ip.source, ip.destination, ports, payload)
        if not ports[0]:
            chosen |= {"outer UDP source port", "outer UDP checksum"}
    return Outer(ip.in_front_of(payload), frozenset(chosen))


def kernel_packet(ip: Ip, way: KernelWay, inner: bytes) -> Outer:
    """Return what the kernel's own tunnel device makes of an inner packet."""
    assert way.encapsulation is not None  # noqa: S101 - or there were no outer packet
    if way.encapsulation.kind == "vxlan":
        made = outer_packet(replace(ip, protocol=UDP), vxlan_heading(way, inner[0] >> 4) + inner, (0, way.port))
    else:
        made = outer_packet(replace(ip, protocol=IP_IN_IP), inner, (0, 0))
    fields = ("TOS", "identification", "flags, fragment offset", "TTL", "header checksum", "hop limit")
    return Outer(made.packet, made.chosen | {f"outer IPv{ip.source.version} {name}" for name in fields})


def vxlan_heading(way: KernelWay, version: int) -> bytes:
    """Return VXLAN's header and the inner Ethernet header (RFC 7348 section 5)."""
    assert way.encapsulation is not None  # noqa: S101 - there is one that is VXLAN
    vni = way.encapsulation.vni.to_bytes(3, "big")
    macs = way.peer_mac.to_bytes(6, "big") + way.encapsulation.own_mac.to_bytes(6, "big")
    return b"\x08\0\0\0" + vni + b"\0" + macs + ETHERTYPES[version].to_bytes(2, "big")


def outer_overhead(kind: str | None, version: int) -> dict[str, int]:
    """Return the bytes of each header that stands in front of an inner packet, the outermost first."""
    if kind is None:
        return {}
    overhead = {f"outer IPv{version}": HEADER_BYTES[version]}
    if kind != "ipip":
        overhead["outer UDP"] = TRANSPORT_BYTES[UDP]
    if kind == "vxlan":
        overhead |= {"VXLAN": 8, "inner Ethernet": 14}
    return overhead
