"""Captured packets as lines for people, in the manner of tcpdump; and what became of each."""

from __future__ import annotations

from datetime import datetime
from typing import TypedDict

from flannel_udp.admin.captured import Captured, Counts, Head, Inner
from flannel_udp.model import Address

_DONE = {"out inner": "forwarded", "out outer": "sent", "in outer": "accepted", "in inner": "delivered"}
_TCP_FLAGS = "FSRP.UEW"  # as tcpdump has them, from the lowest bit on; ACK is the point
_ECHOES = {(1, 8): "echo request", (1, 0): "echo reply", (58, 128): "echo request", (58, 129): "echo reply"}
_ERRORS = {
    (1, 3): "unreachable",
    (1, 11): "time exceeded",
    (58, 1): "unreachable",
    (58, 2): "packet too big",
    (58, 3): "time exceeded",
}
PROTOCOLS = {1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6", 132: "SCTP"}


def verdict(packet: Captured, head: Head) -> str:
    """Return what became of a packet, and what else the data path knew of it, in a clause."""
    if packet.dropped:
        sentence = head["sentences"][head["reasons"].index(packet.reason)]
        text = f"dropped: {packet.reason}: {sentence}"
        if packet.n > 1:
            text += f"; {packet.n} packets, this is the first"
    else:
        text = _DONE.get(packet.place, "passed")
        if packet.n > 1:
            text += f"; {packet.n} packets in one"
    if packet.segment_bytes:
        text += f"; segments of {packet.segment_bytes} bytes"
    if packet.peer is not None:
        text += f"; peer {packet.peer}"
    return text


def packet_line(packet: Captured, head: Head) -> str:
    """Return one line: when, where, the packet, and what became of it."""
    moment = datetime.fromtimestamp(packet.time_ns // 1_000_000_000).astimezone()
    clock = f"{moment:%H:%M:%S}.{packet.time_ns % 1_000_000_000 // 1000:06}"
    inner = packet.inner()
    what = f"no IP header, {packet.n_bytes} bytes" if inner is None else describe(inner)
    if packet.is_outer:
        what = f"{_outer_ends(packet)}: {what}"
    return f"{clock} {packet.place} {what}; {verdict(packet, head)}"


class PacketDocument(TypedDict):
    """What ``capture --json`` prints of a packet, a line each; ports are there for TCP and UDP."""

    time: float
    place: str
    verdict: str
    """``forwarded``, ``sent``, ``accepted``, ``delivered`` or ``dropped``."""
    reason: str | None
    """Why it was dropped."""
    peer: str | None
    source: str | None
    destination: str | None
    protocol: int | None
    source_port: int | None
    destination_port: int | None
    bytes: int
    """Of the packet; of an outer one without the headers that the kernel writes in front."""
    segment_bytes: int | None
    """A super-packet's: payload of each of its segments."""
    packets: int
    """That were lost together, or joined in this one."""
    text: str
    """The line that people get."""


def packet_document(packet: Captured, head: Head) -> PacketDocument:
    """Return a packet for programs."""
    inner = packet.inner()
    ports = (None, None) if inner is None or inner.ports is None else inner.ports
    return PacketDocument(
        time=packet.time_ns / 1e9,
        place=packet.place,
        verdict="dropped" if packet.dropped else _DONE.get(packet.place, "passed"),
        reason=packet.reason if packet.dropped else None,
        peer=None if packet.peer is None else str(packet.peer),
        source=None if inner is None else str(inner.source),
        destination=None if inner is None else str(inner.destination),
        protocol=None if inner is None else inner.protocol,
        source_port=ports[0],
        destination_port=ports[1],
        bytes=packet.n_bytes,
        segment_bytes=packet.segment_bytes or None,
        packets=packet.n,
        text=packet_line(packet, head),
    )


def _outer_ends(packet: Captured) -> str:
    ends = (packet.own, packet.peer) if packet.is_out else (packet.peer, packet.own)
    if packet.encapsulation == "ipip":
        return f"{ends[0]} > {ends[1]} IPIP"
    shown = (f"{_bracketed(end)}:{port}" for end, port in zip(ends, packet.ports, strict=True))
    return f"{' > '.join(shown)} {packet.encapsulation.upper()}"


def _bracketed(address: Address | None) -> str:
    return f"[{address}]" if address is not None and address.version == 6 else str(address)


def describe(inner: Inner) -> str:
    """Return what is known of an inner packet in a clause: `10.1.2.3:40000 > 10.1.4.5:80, TCP [S], 60 bytes`."""
    name = PROTOCOLS.get(inner.protocol, f"protocol {inner.protocol}")
    ends = [str(inner.source), str(inner.destination)]
    if inner.ports is not None:
        ends = [
            f"{_bracketed(end)}:{port}"
            for end, port in zip((inner.source, inner.destination), inner.ports, strict=True)
        ]
    if inner.flags is not None:
        name += f" [{''.join(letter for bit, letter in enumerate(_TCP_FLAGS) if inner.flags >> bit & 1)}]"
    if inner.kind is not None:
        about = (inner.protocol, inner.kind)
        name += f" {_ECHOES.get(about) or _ERRORS.get(about) or f'type {inner.kind}'}"
    if inner.fragment_at:
        name += f", fragment at {inner.fragment_at}"
    return f"{' > '.join(ends)}, {name}, {inner.n_bytes} bytes"


def summary(n_shown: int, counts: Counts) -> str:
    """Return how many packets came, and how many found no room in the agent's memory, for the end of a capture."""
    shown = f"{n_shown:,} packet{'' if n_shown == 1 else 's'}"
    lost = sum(counts["lost"])
    if not lost:
        return f"{shown}, none lost"
    return f"{shown}; {lost:,} more were lost: they came faster than they could be written (--snaplen, --sample)"
