"""IPv6's share of the inputs that the corpus was begun with: see `seeds`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from scapy.layers.inet import TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrRouting, PadN

from flannel_udp.dataplane.reference import VnetHeader
from tests.fuzz.scenario import (
    ACROSS,
    BEGUN,
    CUT_SHIFT,
    FOLLOW,
    FROM_PEER,
    PADDED,
    PEER_SHIFT,
    REPAIR,
    REPAIR_L4,
    record,
)
from tests.support import golden_ipv6

_OUT: dict[str, Any] = {"src": golden_ipv6.OURS, "dst": golden_ipv6.THEIRS}
_IN: dict[str, Any] = {"src": golden_ipv6.THEIRS, "dst": golden_ipv6.OURS}
_TIMESTAMP = [("Timestamp", (7, 8))]
_OPTIONS = IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(4))])
_WHOLE = FROM_PEER | REPAIR | REPAIR_L4


def outbound() -> Iterator[tuple[str, bytes]]:
    """Yield what the host sends."""
    golden = [record(each.packet, flags=0) for each in golden_ipv6.outbound()]
    yield from ((f"out6-golden-{at}", b"".join(golden[at : at + 10])) for at in range(0, len(golden), 10))
    tcp = IPv6(**_OUT, tc=3, fl=7) / TCP(flags="PFCA", options=_TIMESTAMP)
    udp = IPv6(**_OUT) / UDP()
    yield "out6-plain", record(tcp, 100) + record(udp, 100) * 3 + record(udp, 7)
    yield "out6-tcp-super", record(tcp, 60_000, REPAIR, VnetHeader(1, 0x84, 72, 1_400, 40, 16).pack())
    yield "out6-udp-super", record(udp, 900, REPAIR, VnetHeader(1, 5, 48, 64, 40, 6).pack())
    extended = IPv6(**_OUT) / _OPTIONS / TCP(flags="A")
    yield "out6-tcp-super-behind-options", record(extended, 9_000, REPAIR, VnetHeader(1, 4, 68, 1_400, 48, 16).pack())
    for name, header in (("fragment", IPv6ExtHdrFragment(m=1)), ("routed", IPv6ExtHdrRouting())):
        super_packet = record(IPv6(**_OUT) / header / TCP(), 900, REPAIR, VnetHeader(1, 4, 68, 100, 48, 16).pack())
        yield f"out6-tcp-super-{name}", super_packet
    yield "out6-partial", record(udp, 33, REPAIR, VnetHeader(1, 0, 0, 0, 40, 6).pack())
    yield "out6-checksum-in-the-header", record(udp, 33, REPAIR, VnetHeader(1, 0, 0, 0, 39, 6).pack())
    yield "out6-of-ipv4", record(tcp, 900, REPAIR, VnetHeader(1, 1, 72, 100, 40, 16).pack())
    yield "out6-too-big", record(udp, 65_487)


def inbound(tail: bytes = b"") -> Iterator[tuple[str, bytes]]:
    """Yield what comes in every encapsulation; `tail` is what it wants behind each `extra`."""
    number = {golden_ipv6.SECOND_HOST: 0, golden_ipv6.THIRD_HOST: 1, golden_ipv6.STRANGER: 2}
    golden = [
        record(each.packet, flags=FROM_PEER | number[each.sender] << PEER_SHIFT) for each in golden_ipv6.inbound()
    ]
    yield from ((f"in6-golden-{at}", b"".join(golden[at : at + 10])) for at in range(0, len(golden), 10))
    tcp = IPv6(**_IN, fl=5, hlim=33) / TCP(sport=5, dport=6, seq=2**32 - 3_000, flags="A", options=_TIMESTAMP)
    udp = IPv6(**_IN) / UDP(sport=5, dport=6)
    again = record(b"", flags=_WHOLE | FOLLOW)
    push = tcp.copy()
    push[TCP].flags = "PA"
    yield "in6-tcp-stream", record(tcp, 1_000, _WHOLE) + again * 8
    yield "in6-udp-stream", record(udp, 64, _WHOLE) + again * 8
    yield "in6-tcp-bundle", record(tcp, 1_000, _WHOLE, b"\x28\0" + tail) + record(push, 1_000, _WHOLE) + again
    yield "in6-udp-bundle", record(udp, 64, _WHOLE, b"\x2f\0" + tail) + again + record(udp, 63, _WHOLE)
    # Places of what must be equal to be joined: traffic class, flow label, next header, hop limit, a port, an option.
    for place in (0, 1, 3, 6, 7, 41, 53, 71):
        other = record(bytes([place, 0x62]), 0, _WHOLE | FOLLOW)
        yield f"in6-tcp-byte-{place}-changes", record(tcp, 100, _WHOLE) + again + other + again
    fragment = record(IPv6(**_IN) / IPv6ExtHdrFragment(m=1) / UDP(sport=5, dport=6), 80, _WHOLE)
    yield "in6-fragments", record(udp, 80, _WHOLE) + fragment + again + record(udp, 80, _WHOLE)
    extended = record(IPv6(**_IN) / _OPTIONS / UDP(sport=5, dport=6), 80, _WHOLE)
    yield "in6-options-among-others", record(udp, 80, _WHOLE) + extended + record(udp, 80, _WHOLE) + extended
    yield "in6-across", record(udp, 4, _WHOLE | ACROSS << PEER_SHIFT)
    marked = record(IPv6(**_IN, tc=2) / UDP(), 4, _WHOLE, b"\7\3" + tail)
    yield "in6-congestion", record(udp, 4, _WHOLE, b"\0\3" + tail) + marked


def inbound_encapsulated() -> Iterator[tuple[str, bytes]]:
    """Yield what only comes where something is in front of the packet."""
    left = bytes([0, 0, 255, 0, BEGUN])
    cut = bytes([0, 0, 255, 0, BEGUN | 3 << CUT_SHIFT])
    tcp = IPv6(**_IN) / TCP(sport=5, dport=6, seq=9, flags="CEPA", options=_TIMESTAMP)
    udp = IPv6(**_IN) / UDP(sport=5, dport=6)
    extended = IPv6(**_IN) / _OPTIONS / TCP(sport=5, dport=6, flags="A")
    long_options = IPv6(**_IN) / IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(150))]) / TCP(sport=5, dport=6)
    for place in (0, 4, 8, 14, 20, 21):
        yield f"heading6-byte-{place}", record(udp, 40, _WHOLE, bytes([0, 0, place, 0xF7, 0]))
    yield "padded6", record(udp, 4, _WHOLE, bytes([0, 0, 255, 0, PADDED]))
    yield "begun6-tcp", record(tcp, 900, _WHOLE, bytes([12, 0, 255, 0, BEGUN])) + record(tcp, 900, _WHOLE)
    yield "begun6-udp", record(udp, 64, _WHOLE, bytes([12, 0, 255, 0, BEGUN])) + record(udp, 64, _WHOLE)
    for name, each in (("tcp", tcp), ("udp", udp), ("options", extended), ("long-options", long_options)):
        yield f"uncut6-{name}", record(each, 9_000, _WHOLE, left) + record(tcp, 100, _WHOLE, left)
        yield f"uncut6-{name}-with-a-right-checksum", record(each, 9_000, _WHOLE)
        yield f"uncut6-{name}-damaged", record(each, 9_000, FROM_PEER | REPAIR)
        yield f"uncut6-{name}-cut-by-the-kernel", record(each, 900, _WHOLE, cut)
