"""What is said of an ICMP echo of ours is understood by each IP version."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

import pytest

from flannel_udp.host.echo_wire import WIRES, Heard

COOKIE = bytes(range(16))
ICMP = struct.Struct("!BBHHH")
IPV4 = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 84, 0, 0, 64, 1, 0, IPv4Address("192.0.2.1").packed, bytes(4))
IPV6 = struct.pack("!IHBB16s16s", 6 << 28, 44, 58, 64, IPv6Address("2001:db8::1").packed, bytes(16))


@pytest.mark.parametrize(
    ("version", "datagram", "heard"),
    [
        (4, IPV4 + ICMP.pack(0, 0, 0, 7, 1) + COOKIE, Heard(COOKIE, True)),
        (
            4,
            IPV4 + ICMP.pack(3, 4, 0, 0, 1_400) + IPV4 + ICMP.pack(8, 0, 0, 7, 1) + COOKIE,
            Heard(COOKIE, False, 1_400),
        ),
        (4, IPV4 + ICMP.pack(3, 1, 0, 0, 0) + IPV4 + ICMP.pack(8, 0, 0, 7, 1) + COOKIE, Heard(COOKIE, False)),
        (6, ICMP.pack(129, 0, 0, 7, 1) + COOKIE, Heard(COOKIE, True)),
        (
            6,
            struct.pack("!BBHI", 2, 0, 0, 1_280) + IPV6 + ICMP.pack(128, 0, 0, 7, 1) + COOKIE,
            Heard(COOKIE, False, 1_280),
        ),
        (6, ICMP.pack(1, 3, 0, 0, 0) + IPV6 + ICMP.pack(128, 0, 0, 7, 1) + COOKIE, Heard(COOKIE, False)),
    ],
    ids=["answer", "too large", "unreachable", "answer by IPv6", "too large by IPv6", "unreachable by IPv6"],
)
def test_what_is_said_of_an_echo_is_understood(version: int, datagram: bytes, heard: Heard) -> None:
    assert WIRES[version].read(datagram) == heard


@pytest.mark.parametrize("version", [4, 6])
def test_what_is_cut_short_concerns_no_echo_of_ours(version: int) -> None:
    whole = {
        4: IPV4 + ICMP.pack(3, 1, 0, 0, 0) + IPV4 + ICMP.pack(8, 0, 0, 7, 1) + COOKIE,
        6: ICMP.pack(1, 3, 0, 0, 0) + IPV6 + ICMP.pack(128, 0, 0, 7, 1) + COOKIE,
    }[version]
    for size in range(len(IPV4) + ICMP.size if version == 4 else ICMP.size, len(whole)):
        assert WIRES[version].read(whole[:size]).cookie != COOKIE
