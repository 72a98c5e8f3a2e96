"""ICMP errors about the tunnel's own datagrams, and nothing else, are understood; the rest costs nothing but a look."""

from __future__ import annotations

import random
from ipaddress import IPv4Address
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.packet import Packet

from flannel_udp.host.icmp_errors import IcmpError, parse_icmp_error

OWN, PEER, ROUTER, PORT = "192.0.2.1", "192.0.2.2", "192.0.2.254", 8285


def about(datagram: Packet, kind: int = 3, code: int = 3, said_by: str = ROUTER, **fields: Any) -> bytes:
    return bytes(IP(src=said_by, dst=OWN, **fields) / ICMP(type=kind, code=code) / datagram)


def ours(**fields: Any) -> Packet:
    return IP(src=OWN, dst=PEER, **fields) / UDP(sport=PORT, dport=PORT) / bytes(40)


def parse(datagram: bytes) -> IcmpError | None:
    return parse_icmp_error(datagram, IPv4Address(OWN), {PORT, 40_000}, PORT)


@pytest.mark.parametrize(
    ("kind", "code", "text"),
    [
        (3, 0, "network unreachable"),
        (3, 1, "host unreachable"),
        (3, 3, "port unreachable"),
        (3, 13, "prohibited by a filter"),
        (3, 99, "unreachable (code 99)"),
        (11, 0, "time to live exceeded on the way"),
        (12, 0, "bad header"),
    ],
)
def test_what_it_says_and_of_whom(kind: int, code: int, text: str) -> None:
    assert parse(about(ours(), kind, code)) == IcmpError(IPv4Address(PEER), IPv4Address(ROUTER), text)


def test_it_may_be_about_any_of_our_source_ports() -> None:
    assert parse(about(IP(src=OWN, dst=PEER) / UDP(sport=40_000, dport=PORT))) is not None


def test_options_are_skipped_in_both_headers() -> None:
    options = [IPOption_NOP()] * 5
    assert parse(about(ours(options=options), options=options)) is not None


@pytest.mark.parametrize(
    "datagram",
    [
        about(ours(), 3, 4),  # fragmentation needed: the packet path's matter
        about(ours(), 0, 0),
        about(ours(), 8, 0),
        about(IP(src="192.0.2.9", dst=PEER) / UDP(sport=PORT, dport=PORT)),
        about(IP(src=OWN, dst=PEER) / UDP(sport=PORT + 1, dport=PORT)),
        about(IP(src=OWN, dst=PEER) / UDP(sport=PORT, dport=53)),
        about(IP(src=OWN, dst=PEER) / TCP(sport=PORT, dport=PORT)),
        about(ours(frag=100)),
        bytes(IP(src=ROUTER, dst=OWN) / UDP() / ours()),
        b"",
        bytes(128),
    ],
)
def test_what_is_not_about_our_datagrams_is_nothing(datagram: bytes) -> None:
    assert parse(datagram) is None


def test_whatever_is_cut_short_or_garbled_is_nothing_or_right() -> None:
    whole = about(ours())
    for n in range(20 + 8 + 20 + 4):
        assert parse(whole[:n]) is None
    chance = random.Random(1)
    for _ in range(20_000):
        garbled = bytearray(whole[: chance.randrange(len(whole))])
        for _ in range(min(len(garbled), chance.randrange(4))):
            garbled[chance.randrange(len(garbled))] = chance.randrange(256)
        parse(bytes(garbled))


# IP in IP


def parse_ipip(datagram: bytes) -> IcmpError | None:
    return parse_icmp_error(datagram, IPv4Address(OWN), (), None)


def test_of_ip_in_ip_any_packet_of_ours_is_meant() -> None:
    inner = IP(src="10.1.1.5", dst="10.1.2.7") / UDP()
    assert parse_ipip(about(IP(src=OWN, dst=PEER) / inner, 3, 2)) == IcmpError(
        IPv4Address(PEER), IPv4Address(ROUTER), "protocol unreachable"
    )
    assert parse_ipip(about(IP(src=OWN, dst=PEER, proto=4) / bytes(8), 3, 1)) is not None
    assert parse_ipip(about(ours())) is None
    assert parse_ipip(about(IP(src="192.0.2.9", dst=PEER) / inner)) is None
    assert parse_ipip(about(IP(src=OWN, dst=PEER) / inner, 3, 4)) is None
    assert parse(about(IP(src=OWN, dst=PEER) / inner)) is None
