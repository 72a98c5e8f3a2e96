"""Golden IPv6 packets: one of each kind that the packet path tells apart, and what becomes of it in `small_table`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

OURS, THEIRS, THIRD = "fd00:10:244:1::5", "fd00:10:244:2::7", "fd00:10:244:3::7"
OWN_ADDRESS, UNDERLAY = "fd00:10:244:1::", "2001:db8::1"
SECOND_HOST, THIRD_HOST, STRANGER = "2001:db8::2", "2001:db8::3", "2001:db8::9"
UDP, TCP, ICMPV6, NOTHING = "11", "06", "3a", "3b"
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION = "00", "2b", "2c", "3c"
# Written out, so that neither the twin nor scapy has a say in them.
_HEX = {
    "::": "00000000000000000000000000000000",
    "::1": "00000000000000000000000000000001",
    "::ffff:192.0.2.1": "00000000000000000000ffffc0000201",
    "2001:db8::1": "20010db8000000000000000000000001",
    "2001:db8::2": "20010db8000000000000000000000002",
    "2001:db8:ffff::1": "20010db8ffff00000000000000000001",
    "fd00:10:244:1::": "fd000010024400010000000000000000",
    "fd00:10:244:1::5": "fd000010024400010000000000000005",
    "fd00:10:244:1::9": "fd000010024400010000000000000009",
    "fd00:10:244:2::7": "fd000010024400020000000000000007",
    "fd00:10:244:3::7": "fd000010024400030000000000000007",
    "fd00:10:244:9::1": "fd000010024400090000000000000001",
    "fe80::1": "fe800000000000000000000000000001",
    "febf::1": "febf0000000000000000000000000001",
    "fec0::1": "fec00000000000000000000000000001",
    "ff02::1": "ff020000000000000000000000000001",
    "ff0e::5": "ff0e0000000000000000000000000005",
}


@dataclass(frozen=True)
class Golden:
    """A packet with a name, and its end: the host it goes to ("": to the TUN), or the reason to drop it.

    `answer`: type and code of the ICMPv6 error that its sender gets. `sender`: the host that an inbound packet is from.
    """

    name: str
    packet: bytes
    end: str
    answer: tuple[int, int] | None = None
    sender: str = SECOND_HOST


def ipv6(
    source: str,
    destination: str,
    next_header: str,
    rest: str,
    *,
    hop_limit: str = "40",
    first: str = "60000000",
    length: int | None = None,
) -> bytes:
    """Return a packet of hexadecimal pieces; `length` is the payload length that it claims."""
    behind = bytes.fromhex(rest)
    claimed = (len(behind) if length is None else length).to_bytes(2, "big")
    ends = bytes.fromhex(_HEX[source] + _HEX[destination])
    return bytes.fromhex(first) + claimed + bytes.fromhex(next_header + hop_limit) + ends + behind


UDP_DATAGRAM = "1234 0035 000c 0000 61626364"  # its checksum is nobody's business on the way
ECHO = "8000 0000 0001 0001 61626364"
PAD_TO_8 = "0104 00000000"  # PadN: the 6 bytes behind next header and length


def outbound() -> Iterator[Golden]:
    """Yield what the host sends into the tunnel device."""
    yield Golden("echo request", ipv6(OURS, THEIRS, ICMPV6, ECHO), SECOND_HOST)
    yield Golden("UDP to the third host", ipv6(OURS, THIRD, UDP, UDP_DATAGRAM), THIRD_HOST)
    yield Golden("traffic class and flow label", ipv6(OURS, THEIRS, UDP, UDP_DATAGRAM, first="6b9abcde"), SECOND_HOST)
    yield Golden("nothing behind the header", ipv6(OURS, THEIRS, NOTHING, ""), SECOND_HOST)
    yield Golden("hop limit 2", ipv6(OURS, THEIRS, UDP, UDP_DATAGRAM, hop_limit="02"), SECOND_HOST)
    yield Golden("hop limit 1", ipv6(OURS, THEIRS, UDP, UDP_DATAGRAM, hop_limit="01"), "ttl_expired", (3, 0))
    yield Golden("hop limit 0", ipv6(OURS, THEIRS, UDP, UDP_DATAGRAM, hop_limit="00"), "ttl_expired", (3, 0))
    yield Golden("nobody's subnet", ipv6(OURS, "fd00:10:244:9::1", UDP, UDP_DATAGRAM), "no_route", (1, 0))
    yield Golden("not of the overlay", ipv6(OURS, "2001:db8:ffff::1", UDP, UDP_DATAGRAM), "no_route", (1, 0))
    yield Golden("site-local", ipv6(OURS, "fec0::1", UDP, UDP_DATAGRAM), "no_route", (1, 0))
    yield Golden("nobody in our subnet", ipv6(OURS, "fd00:10:244:1::9", UDP, UDP_DATAGRAM), "own_subnet", (1, 3))
    yield Golden("nobody in our subnet, echo", ipv6(OURS, "fd00:10:244:1::9", ICMPV6, ECHO), "own_subnet", (1, 3))
    yield from _never_forwarded()
    yield from _of_lying_length()
    yield from _with_extension_headers()
    yield from _unanswered()
    yield Golden("our own datagram", ipv6(UNDERLAY, SECOND_HOST, UDP, UDP_DATAGRAM), "looped")
    yield Golden("our own datagram, masqueraded", ipv6(OWN_ADDRESS, SECOND_HOST, UDP, UDP_DATAGRAM), "looped")
    later = ipv6(UNDERLAY, SECOND_HOST, FRAGMENT, UDP + "00 0068 00000007" + "00" * 16)
    yield Golden("a later fragment of our own datagram", later, "looped")
    yield Golden("TCP of ours to a peer's host", ipv6(UNDERLAY, SECOND_HOST, TCP, "00" * 20), "no_route", (1, 0))
    yield Golden("version 5", ipv6(OURS, THEIRS, UDP, UDP_DATAGRAM, first="50000000"), "not_ipv6")
    yield Golden("version 4", ipv6(OURS, THEIRS, UDP, UDP_DATAGRAM, first="40000000"), "not_ipv6")


def _never_forwarded() -> Iterator[Golden]:
    for address in ("::", "::1", "::ffff:192.0.2.1", "fe80::1", "febf::1", "ff02::1", "ff0e::5"):
        yield Golden(f"to {address}", ipv6(OURS, address, UDP, UDP_DATAGRAM), "not_unicast")
        yield Golden(f"from {address}", ipv6(address, THEIRS, UDP, UDP_DATAGRAM), "not_unicast")
    yield Golden(
        "router solicitation", ipv6("fe80::1", "ff02::1", ICMPV6, "8500 0000 00000000", hop_limit="ff"), "not_unicast"
    )
    report = ICMPV6 + "00 0502 0000 0100" + "8f00 0000 0000 0000"
    yield Golden("MLD report", ipv6("::", "ff02::1", HOP_BY_HOP, report, hop_limit="01"), "not_unicast")


def _of_lying_length() -> Iterator[Golden]:
    for length in (0, 11, 13, 65_535):
        packet = ipv6(OURS, THEIRS, UDP, UDP_DATAGRAM, length=length)
        yield Golden(f"payload length {length} instead of 12", packet, "bad_total_len")
    jumbo = UDP + "00 c204 0000000c" + UDP_DATAGRAM
    yield Golden("jumbogram", ipv6(OURS, THEIRS, HOP_BY_HOP, jumbo, length=0), "bad_total_len")
    yield Golden("jumbogram without anything", ipv6(OURS, THEIRS, HOP_BY_HOP, ""), "bad_total_len")
    yield Golden("39 bytes", ipv6(OURS, THEIRS, NOTHING, "")[:39], "too_short")


def _with_extension_headers() -> Iterator[Golden]:
    """None of them is a reason to drop a packet: a router does not look (RFC 8200 section 4)."""
    three = f"{DESTINATION}00 {PAD_TO_8} {ROUTING}00 {PAD_TO_8} {UDP}00 0401 00000000 {UDP_DATAGRAM}"
    yield Golden("Hop-by-Hop, Destination, Routing, UDP", ipv6(OURS, THEIRS, HOP_BY_HOP, three), SECOND_HOST)
    nine = f"{DESTINATION}00 {PAD_TO_8}" * 8 + f"{UDP}00 {PAD_TO_8} {UDP_DATAGRAM}"
    yield Golden("nine extension headers", ipv6(OURS, THEIRS, DESTINATION, nine), SECOND_HOST)
    yield Golden("a chain cut short", ipv6(OURS, THEIRS, DESTINATION, f"{UDP}07 {PAD_TO_8}"), SECOND_HOST)
    yield Golden("a chain of one byte", ipv6(OURS, THEIRS, DESTINATION, UDP), SECOND_HOST)
    yield Golden("no chain where one begins", ipv6(OURS, THEIRS, DESTINATION, ""), SECOND_HOST)
    yield Golden("Hop-by-Hop again and again", ipv6(OURS, THEIRS, HOP_BY_HOP, f"0000 {PAD_TO_8}" * 20), SECOND_HOST)
    yield Golden("ESP", ipv6(OURS, THEIRS, "32", "00" * 16), SECOND_HOST)
    yield Golden("an unknown protocol", ipv6(OURS, THEIRS, "fd", "00" * 16), SECOND_HOST)
    for name, offset in (("first", "0001"), ("middle", "0069"), ("last", "0068"), ("atomic", "0000")):
        fragment = f"{UDP}00 {offset} 00000007 {UDP_DATAGRAM}"
        yield Golden(f"{name} fragment", ipv6(OURS, THEIRS, FRAGMENT, fragment), SECOND_HOST)


def _unanswered() -> Iterator[Golden]:
    """RFC 4443 section 2.4 (e): nothing about an error, nor about what might be one."""
    nowhere = "fd00:10:244:9::1"
    quoted = "0000 00000000"
    for name, kind in (("unreachable", "01"), ("too big", "02"), ("a private error", "7f"), ("a redirect", "89")):
        yield Golden(f"{name}, no route", ipv6(OURS, nowhere, ICMPV6, kind + "00" + quoted), "no_route")
    yield Golden("echo reply, no route", ipv6(OURS, nowhere, ICMPV6, "8100" + quoted), "no_route", (1, 0))
    behind = f"{ICMPV6}00 {PAD_TO_8} 0100 {quoted}"
    yield Golden("an error behind options, no route", ipv6(OURS, nowhere, DESTINATION, behind), "no_route")
    yield Golden("ICMPv6 without its type, no route", ipv6(OURS, nowhere, ICMPV6, ""), "no_route")
    yield Golden("a chain cut short, no route", ipv6(OURS, nowhere, DESTINATION, f"{UDP}07 {PAD_TO_8}"), "no_route")
    later = f"{UDP}00 0068 00000007 {UDP_DATAGRAM}"
    yield Golden("a later fragment, no route", ipv6(OURS, nowhere, FRAGMENT, later), "no_route")
    first = f"{UDP}00 0001 00000007 {UDP_DATAGRAM}"
    yield Golden("a first fragment, no route", ipv6(OURS, nowhere, FRAGMENT, first), "no_route", (1, 0))


def inbound() -> Iterator[Golden]:
    """Yield what peers send; the source check is strict."""
    yield Golden("echo request", ipv6(THEIRS, OURS, ICMPV6, ECHO), "")
    yield Golden("from the third host", ipv6(THIRD, OURS, UDP, UDP_DATAGRAM), "", sender=THIRD_HOST)
    yield Golden("from a host's own address", ipv6("2001:db8:ffff::1", OURS, UDP, UDP_DATAGRAM), "")
    yield Golden("a later fragment", ipv6(THEIRS, OURS, FRAGMENT, f"{UDP}00 0068 00000007" + "00" * 8), "")
    yield Golden("from a stranger", ipv6(THEIRS, OURS, UDP, UDP_DATAGRAM), "unknown_peer", sender=STRANGER)
    yield Golden("with another's source", ipv6(THIRD, OURS, UDP, UDP_DATAGRAM), "spoofed_source")
    yield Golden("with our own source", ipv6("fd00:10:244:1::9", OURS, UDP, UDP_DATAGRAM), "spoofed_source")
    yield Golden("for another host", ipv6(THEIRS, THIRD, UDP, UDP_DATAGRAM), "not_our_subnet")
    yield Golden("for nobody's subnet", ipv6(THEIRS, "fd00:10:244:9::1", UDP, UDP_DATAGRAM), "not_our_subnet")
    for address in ("::", "::1", "::ffff:192.0.2.1", "fe80::1", "ff02::1"):
        yield Golden(f"to {address}", ipv6(THEIRS, address, UDP, UDP_DATAGRAM), "not_unicast")
        yield Golden(f"from {address}", ipv6(address, OURS, UDP, UDP_DATAGRAM), "not_unicast")
    yield Golden("hop limit 1", ipv6(THEIRS, OURS, UDP, UDP_DATAGRAM, hop_limit="01"), "ttl_expired", (3, 0))
    yield Golden("IPv4", bytes.fromhex("4500 0014 0000 0000 4000 0000 0a010207 0a010105") + bytes(20), "not_ipv6")
    yield Golden("payload length too short", ipv6(THEIRS, OURS, UDP, UDP_DATAGRAM, length=11), "bad_total_len")
    yield Golden("an empty datagram", b"", "too_short")
