"""ICMPv6 errors about the tunnel's own datagrams, and nothing else, are understood."""

from __future__ import annotations

import random
from ipaddress import IPv6Address

import pytest
from scapy.layers.inet import TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6PacketTooBig, ICMPv6TimeExceeded, IPv6
from scapy.packet import Packet

from flannel_udp.host.icmp_errors import IcmpError, parse_icmpv6_error

OWN, PEER, ROUTER, PORT = "2001:db8::1", "2001:db8::2", "2001:db8::fe", 8285


def ours(source: str = OWN, sport: int = PORT, dport: int = PORT) -> Packet:
    return IPv6(src=source, dst=PEER) / UDP(sport=sport, dport=dport) / bytes(40)


def parse(message: bytes) -> IcmpError | None:
    return parse_icmpv6_error(message, IPv6Address(ROUTER), IPv6Address(OWN), {PORT, 40_000}, PORT)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ICMPv6DestUnreach(code=0), "no route"),
        (ICMPv6DestUnreach(code=1), "prohibited by a filter"),
        (ICMPv6DestUnreach(code=3), "address unreachable"),
        (ICMPv6DestUnreach(code=4), "port unreachable"),
        (ICMPv6DestUnreach(code=99), "unreachable (code 99)"),
        (ICMPv6TimeExceeded(), "hop limit exceeded on the way"),
    ],
)
def test_what_it_says_and_of_whom(error: Packet, text: str) -> None:
    assert parse(bytes(error / ours())) == IcmpError(IPv6Address(PEER), IPv6Address(ROUTER), text)
    assert parse(bytes(error / ours(sport=40_000))) is not None


@pytest.mark.parametrize(
    "message",
    [
        bytes(ICMPv6PacketTooBig(mtu=1400) / ours()),  # the packet path's matter
        bytes(ICMPv6DestUnreach(code=4) / ours(source="2001:db8::9")),
        bytes(ICMPv6DestUnreach(code=4) / ours(sport=1)),
        bytes(ICMPv6DestUnreach(code=4) / ours(dport=53)),
        bytes(ICMPv6DestUnreach(code=4) / IPv6(src=OWN, dst=PEER) / TCP(sport=PORT, dport=PORT)),
    ],
)
def test_everything_else_is_none(message: bytes) -> None:
    assert parse(message) is None


def test_nothing_that_is_cut_short_or_random_is_an_error() -> None:
    whole = bytes(ICMPv6DestUnreach(code=4) / ours())
    assert [parse(whole[:length]) for length in range(8 + 40 + 4)] == [None] * (8 + 40 + 4)
    random.seed(6)
    for length in range(88):
        parse(random.randbytes(length))
