"""The inputs that the corpus was begun with: `python -m tests.fuzz.seeds FOLDER` writes them.

Golden packets of every kind that the packet path treats in a way of its own; libFuzzer made the rest of the corpus.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scapy.layers.inet import ICMP, IP, TCP, UDP

from flannel_udp.dataplane import reference
from flannel_udp.dataplane.encapsulation import UDP as PLAIN
from flannel_udp.dataplane.reference import VnetHeader
from tests.fuzz import seeds_ipv6
from tests.fuzz.scenario import (
    BEGUN,
    CUT_SHIFT,
    EXTRA,
    FOLLOW,
    FROM_PEER,
    PADDED,
    PEER_SHIFT,
    POLL,
    REPAIR,
    REPAIR_L4,
    record,
)
from tests.fuzz.target import SETTINGS
from tests.support.repair import repaired, with_partial_checksum

_OUT: dict[str, Any] = {"src": "10.1.1.5", "dst": "10.1.2.7"}
_IN: dict[str, Any] = {"src": "10.1.2.7", "dst": "10.1.1.5"}
_TIMESTAMP = [("Timestamp", (7, 8))]


def outbound() -> Iterator[tuple[str, bytes]]:
    tcp, udp = IP(**_OUT, id=9, flags="DF") / TCP(flags="PFCA", options=_TIMESTAMP), IP(**_OUT, id=65_535) / UDP()
    yield "out-plain", record(tcp, 100) + record(udp, 100) * 3 + record(udp, 7)
    yield "out-tcp-super", record(tcp, 60_000, REPAIR, VnetHeader(1, 0x81, 52, 1_400, 20, 16).pack())
    yield "out-udp-super", record(udp, 900, REPAIR, VnetHeader(1, 5, 28, 64, 20, 6).pack())
    yield "out-partial", record(udp, 33, REPAIR, VnetHeader(1, 0, 0, 0, 20, 6).pack())
    cut = IP(**_OUT) / TCP(dataofs=15) / bytes(39)
    yield "out-tcp-options-cut-short", record(cut, 0, REPAIR, VnetHeader(1, 1, 80, 10, 20, 16).pack())
    yield "out-no-gso-size", record(tcp, 900, REPAIR, VnetHeader(1, 1, 52, 0, 20, 16).pack())
    yield "out-checksum-outside", record(udp, 33, REPAIR, VnetHeader(1, 0, 0, 0, 60_000, 6).pack())
    yield "out-too-big", record(udp, 65_507)
    # Only the first one teaches the engine the path's MTU; the second one is wrong by itself.
    too_big = record(tcp, 65_500, REPAIR | POLL)
    yield (
        "out-too-big-then-checksum-outside",
        too_big + record(tcp, 65_500, REPAIR, VnetHeader(1, csum_start=65_535).pack()),
    )
    yield "out-no-route", record(IP(src="10.1.1.5", dst="10.1.9.1") / ICMP(), 40)
    yield "out-own-subnet", record(IP(src="10.1.1.5", dst="10.1.1.9") / UDP(), 600)
    yield "out-ttl", record(IP(**_OUT, ttl=1) / UDP(), 4)
    yield "out-multicast", record(IP(src="10.1.1.5", dst="224.0.0.1") / UDP())
    yield (
        "out-former-class-e",
        record(IP(src="10.1.1.5", dst="240.1.2.3") / UDP()) + record(IP(src="10.1.1.5", dst="255.255.255.255") / UDP()),
    )
    came_back = IP(src="127.0.0.1", dst="127.0.0.2", flags="MF") / UDP()
    masqueraded = IP(src="10.1.1.0", dst="127.0.0.3", frag=64) / UDP()
    yield "out-looped", record(came_back, 100) + record(masqueraded, 100) + record(IP(**_OUT) / UDP(), 100)
    yield "out-options", record(IP(**_OUT, options=b"\x01\x01\x01\x00") / UDP(), 4)
    yield "out-two-peers", (record(udp, 60) + record(IP(src="10.1.1.5", dst="10.1.3.7", tos=8) / UDP(), 60)) * 3
    yield "out-malformed", record(b"") + record(b"\x45", flags=0) + record(bytes(tcp)[:30], flags=0) + record(b"`" * 40)


def inbound(tail: bytes = b"") -> Iterator[tuple[str, bytes]]:
    """What comes in every encapsulation; `tail` is what it wants behind each `extra`."""
    whole = FROM_PEER | REPAIR | REPAIR_L4
    tcp = IP(**_IN, id=5, flags="DF", ttl=33) / TCP(sport=5, dport=6, seq=2**32 - 3_000, flags="A", options=_TIMESTAMP)
    udp = IP(**_IN, id=65_530) / UDP(sport=5, dport=6)
    again = record(b"", flags=whole | FOLLOW)
    push, urgent = tcp.copy(), tcp.copy()
    push[TCP].flags, urgent[TCP].urgptr, urgent[TCP].seq = "PA", 1, tcp.seq + 100
    yield "in-tcp-stream", record(tcp, 1_000, whole) + again * 8
    yield "in-udp-stream", record(udp, 64, whole) + again * 8
    yield "in-tcp-bundle", record(tcp, 1_000, whole, b"\x28\0" + tail) + record(push, 1_000, whole) + again
    yield "in-udp-bundle", record(udp, 64, whole, b"\x2f\0" + tail) + again + record(udp, 63, whole)
    # Places of what must be equal to be joined: TOS, TTL, a port, acknowledgement, flags, window, a timestamp.
    for place in (1, 8, 23, 31, 33, 35, 51):
        other = record(bytes([place, 18]), 0, whole | FOLLOW)
        yield f"in-tcp-byte-{place}-changes", record(tcp, 100, whole) + again + other + again
    yield "in-urgent-pointer", record(tcp, 100, whole) + record(urgent, 100, whole)
    yield "in-corrupted", record(tcp, 100, FROM_PEER | REPAIR) + again * 3
    yield "in-fragments", record(tcp, 80, whole) + record(IP(**_IN, flags="MF", frag=3), 80, whole) + again + again
    yield "in-spoofed", record(udp, 4, whole | 1 << PEER_SHIFT)
    yield "in-stranger", record(udp, 4, whole | 2 << PEER_SHIFT)
    yield "in-not-ours", record(IP(src="10.1.2.7", dst="10.1.3.7") / UDP(), 4, whole)
    yield "in-ttl", record(IP(**_IN, ttl=1) / UDP(), 4, whole)
    yield "in-empty", record(b"", 0, FROM_PEER) + record(b"", 1, FROM_PEER | EXTRA, b"\x20\0" + tail)
    yield "in-congestion-lost", record(udp, 4, whole, b"\0\3" + tail)
    yield (
        "in-congestion-marked",
        record(IP(**_IN, tos=2) / UDP(), 4, whole, b"\7\3" + tail) + record(tcp, 4, whole, b"\0\1" + tail),
    )
    yield "in-data-offset", record(IP(**_IN) / TCP(dataofs=15, flags="A"), 4, whole) + again
    yield "both", record(udp, 64, whole) + record(IP(**_OUT) / UDP(), 64, REPAIR | POLL) + again


def inbound_encapsulated() -> Iterator[tuple[str, bytes]]:
    """What only comes where something is in front of the packet: see scenario.py for `extra`."""
    whole = FROM_PEER | REPAIR | REPAIR_L4
    tcp = IP(**_IN, id=5, flags="DF") / TCP(sport=5, dport=6, seq=9, flags="A", options=_TIMESTAMP)
    marked, urgent = tcp.copy(), tcp.copy()
    marked[TCP].flags, urgent[TCP].flags, urgent[TCP].urgptr = "CEPA", "UA", 7
    udp = IP(**_IN, id=65_530) / UDP(sport=5, dport=6)
    options = IP(**_IN, options=b"\x01\x01\x01\x00") / UDP(sport=5, dport=6)
    fragment = IP(**_IN, flags="MF") / UDP(sport=5, dport=6)
    for place in (0, 3, 4, 7, 8, 9, 14, 20, 21):
        yield f"heading-byte-{place}", record(udp, 40, whole, bytes([0, 0, place, 0xF7, 0]))
    yield "padded", record(udp, 4, whole, bytes([0, 0, 255, 0, PADDED]))
    left = bytes([0, 0, 255, 0, BEGUN])
    yield "begun-tcp", record(tcp, 900, whole, bytes([12, 0, 255, 0, BEGUN])) + record(tcp, 900, whole)
    yield "begun-udp", record(udp, 64, whole, bytes([12, 0, 255, 0, BEGUN])) + record(udp, 64, whole)
    yield "begun-with-options", record(options, 64, whole, left)
    yield "begun-in-a-fragment", record(fragment, 64, whole, left)
    for name, each in (("tcp", tcp), ("tcp-marked", marked), ("tcp-urgent", urgent), ("udp", udp)):
        yield f"uncut-{name}", record(each, 9_000, whole, left) + record(tcp, 100, whole, left)
        yield f"uncut-{name}-with-a-right-checksum", record(each, 9_000, whole)
        yield f"uncut-{name}-damaged", record(each, 9_000, FROM_PEER | REPAIR)
        yield f"uncut-{name}-cut-by-the-kernel", record(each, 900, whole, bytes([0, 0, 255, 0, BEGUN | 3 << CUT_SHIFT]))
    behind = udp.copy()
    behind.id = udp.id + 1
    run = record(behind, 600, whole, bytes([0, 0, 255, 0, BEGUN | 3 << CUT_SHIFT]))
    yield "uncut-udp-behind-a-longer-datagram", record(udp, 900, whole) + run
    # TCP whose right checksum is the pseudo-header's sum, too: a payload that makes it so.
    alike = IP(**_IN) / TCP(sport=5, dport=6, flags="A") / bytes(2)
    yield "right-checksum-that-looks-begun", record(with_checksum_of_the_pseudo_header(bytes(alike)), 0, FROM_PEER)


def with_checksum_of_the_pseudo_header(packet: bytes) -> bytes:
    """Return a TCP packet whose last two bytes, payload, are such that its right checksum looks only begun."""
    partial = with_partial_checksum(packet)
    pseudo_sum = int.from_bytes(partial[36:38], "big")
    # The sums of pseudo-header, segment and these two bytes make 0xffff, one's complement's zero.
    payload = (reference.checksum(partial[20:]) - pseudo_sum) % 0xFFFF
    return repaired(partial[:-2] + payload.to_bytes(2, "big"), transport_too=False)


def inputs_of(setting: int) -> Iterator[tuple[str, bytes]]:
    """Yield the inputs for one of the settings, by name."""
    encapsulation, versions, _, _ = SETTINGS[setting]
    tail = b"" if encapsulation is PLAIN else bytes([255, 0, 0])
    for version, module in ((4, sys.modules[__name__]), (6, seeds_ipv6)):
        if version in versions:
            yield from module.outbound()
            yield from module.inbound(tail)
            if encapsulation is not PLAIN:
                yield from module.inbound_encapsulated()


if __name__ == "__main__":
    for setting in range(len(SETTINGS)):
        for name, data in inputs_of(setting):
            Path(sys.argv[1], f"{name}-{setting}").write_bytes(bytes([setting]) + data)
