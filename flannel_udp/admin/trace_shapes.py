"""The documents of ``trace``: what would become of a packet, on the host that sends it and on the one that gets it.

Addresses are text, bytes are hexadecimal text. Reasons are those of the drop counters (`DirectionCounters.drops`).
"""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

Verdict = Literal["sent", "delivered", "dropped", "elsewhere"]
"""Sent to a peer; delivered on this host; dropped; led elsewhere by the host, where it is no packet of ours."""


class TraceField(TypedDict):
    """A field of a header: where it begins in the packet, its bytes and what they say.

    ``hex`` is ``None`` where the kernel chooses the value only as it sends the packet.
    """

    name: str
    offset: int
    bytes: int
    hex: str | None
    value: str
    meaning: str


class TraceHeader(TypedDict):
    """A header of a packet, and who writes it; ``offset`` counts from the packet's first byte."""

    name: str
    offset: int
    bytes: int
    fields: list[TraceField]


class TracePacket(TypedDict):
    """A packet: all of its bytes, and its headers from the outermost one on."""

    bytes: int
    hex: str
    headers: list[TraceHeader]


class TraceAsked(TypedDict):
    """The packet that was asked about, as its sender gives it; ``size`` is the whole IP packet's in bytes."""

    source: str
    destination: str
    protocol: int
    size: int
    tos: int
    ttl: int
    df: bool
    source_port: int | None
    destination_port: int | None


class TraceHost(TypedDict):
    """What the kernel of the host does with the packet before anybody puts something in front of it.

    ``sender`` is "host" or "pod"; ``route`` the entry of its tables, in `ip route`'s words; ``device`` where that leads
    and ``mtu`` that device's, as far as they are known. ``outcome`` is "passed", "fragmented" (into ``packets``),
    "delivered", "dropped" or "elsewhere"; ``why`` says it in a sentence; ``ttl`` is what is left of that. ``diverted``
    is there where a route or rule leads packets elsewhere than they have to go.
    """

    sender: str
    route: str
    device: str | None
    mtu: int | None
    ttl: int
    outcome: str
    packets: int
    why: str
    diverted: NotRequired[str]


class TracePeer(TypedDict):
    """The peer whose lease covers the destination; ``problem`` says why nothing arrives there, where that is known."""

    subnet: str
    public_ip: str
    problem: str | None


class TraceCheck(TypedDict):
    """A question of the data path; ``result`` is "passed", "failed" or "not asked".

    ``reasons`` are what a packet may be dropped for there.
    """

    check: str
    reasons: list[str]
    result: str


class TraceMtu(TypedDict):
    """Whether it fits: ``inner`` and what stands in front of that, by header, make ``outer``.

    ``path`` is what the kernel knows of the path to the peer, for outer packets; ``probed`` what the agent's probes
    found and ``limit`` what is in force, for inner ones. ``None``: nothing is known, there is no limit.
    """

    inner: int
    overhead: dict[str, int]
    outer: int
    path: int | None
    probed: int | None
    limit: int | None


class TraceDatagram(TracePacket):
    """A packet as it leaves, from its IP header on, and the ``inner`` one that it carries.

    ``payload`` is what a socket of the peer's data path reads of it, ``None`` where there is no tunnel;
    ``fragmentable`` tells whether routers may cut it, ``None`` where the kernel decides that.
    """

    inner: str
    payload: str | None
    tos: int
    fragmentable: bool | None


class TraceEntry(TypedDict):
    """An entry of the kernel's by which it sends to the peer, in the words of `ip` or `bridge`."""

    entry: str
    present: bool


class TraceArrival(TypedDict):
    """What the other host would do with the packet that was sent to it.

    ``carrier`` is "data path", whose ``checks`` they are, or "kernel". ``packet`` is the inner one as far as it got;
    ``route`` what the host's kernel does with it then; ``answer`` the ICMP error that its sender would get.
    """

    subnet: str
    backend: str
    carrier: str
    checks: list[TraceCheck]
    verdict: Verdict
    reason: str | None
    why: str
    packet: TracePacket | None
    route: str | None
    answer: TracePacket | None


class Trace(TypedDict):
    """What would become of a packet, step by step; nothing was sent.

    ``carrier`` is "data path" (ours), "kernel" or "nobody". ``reason`` is the data path's, ``None`` where it drops
    nothing or never sees the packet; ``dropped_by`` is then "host", "data path" or "other host". ``answer`` is the ICMP
    error that the sender would get. ``arrival`` is there where the other host was asked.
    """

    asked: TraceAsked
    packet: TracePacket
    host: TraceHost
    backend: str
    carrier: str
    peer: TracePeer | None
    checks: list[TraceCheck]
    mtu: TraceMtu | None
    datagrams: list[TraceDatagram]
    entries: list[TraceEntry]
    verdict: Verdict
    reason: str | None
    dropped_by: str | None
    why: str
    answer: TracePacket | None
    notes: list[str]
    arrival: NotRequired[TraceArrival]
