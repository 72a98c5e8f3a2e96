"""Which ICMP messages the kernel lets a socket have: tried on sockets that anybody may open, with the same filters."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address, IPv6Address

import pytest

from flannel_udp.host.packet_filter import accept_echoes, accept_echoes_v6

IDENTIFIER, SECRET = 0x8285, bytes.fromhex("fedcba98")
COOKIE = SECRET + bytes(range(12))
FOREIGN = {
    "nothing": b"",
    "three bytes": SECRET[:3],
    "zeros": bytes(16),
    "another secret": bytes.fromhex("fedcba99") + COOKIE[4:],
    "one byte early": COOKIE[1:],
}
ICMP = struct.Struct("!BBHHH")
V4 = struct.Struct("!BBHHHBBH4s4s")
V6 = struct.Struct("!IHBB16s16s")


def ipv4(payload: bytes, options: bytes = b"") -> bytes:
    head = V4.pack(0x45 + len(options) // 4, 0, 84, 0, 0, 64, 1, 0, IPv4Address("192.0.2.1").packed, bytes(4))
    return head + options + payload


def ipv6(payload: bytes) -> bytes:
    return V6.pack(6 << 28, len(payload), 58, 64, IPv6Address("2001:db8::1").packed, bytes(16)) + payload


def echo(kind: int, body: bytes, identifier: int = IDENTIFIER) -> bytes:
    return ICMP.pack(kind, 0, 0, identifier, 1) + body


def messages(version: int, body: bytes, identifier: int = IDENTIFIER) -> list[bytes]:
    """Return all that may concern an echo, as a raw socket's filter sees it."""
    if version == 6:
        replied, asked = echo(129, body, identifier), ipv6(echo(128, body, identifier))
        return [replied, *(ICMP.pack(kind, 0, 0, 0, 0) + asked for kind in (1, 2, 3))]
    replied, asked = echo(0, body, identifier), echo(8, body, identifier)
    options = bytes(8)
    return [
        *(ipv4(replied), ipv4(replied, options)),
        *(ipv4(ICMP.pack(kind, 0, 0, 0, 0) + ipv4(asked)) for kind in (3, 11)),
        ipv4(ICMP.pack(3, 0, 0, 0, 0) + ipv4(asked, options), options),
    ]


def passed(version: int, sent: list[bytes]) -> list[bytes]:
    """Return what a socket has of these messages, which the kernel drops in silence."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        {4: accept_echoes, 6: accept_echoes_v6}[version](ours, IDENTIFIER, SECRET)
        for message in sent:
            theirs.send(message)
        ours.setblocking(False)
        found: list[bytes] = []
        while True:
            try:
                found.append(ours.recv(2_048))
            except BlockingIOError:
                return found


@pytest.mark.parametrize("version", [4, 6])
def test_what_concerns_an_echo_of_this_process_passes(version: int) -> None:
    sent = messages(version, COOKIE)
    assert passed(version, sent) == sent


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("body", FOREIGN.values(), ids=FOREIGN)
def test_what_bears_the_identifier_only_wakes_nobody(version: int, body: bytes) -> None:
    assert passed(version, messages(version, body)) == []


@pytest.mark.parametrize("version", [4, 6])
def test_what_bears_another_identifier_wakes_nobody(version: int) -> None:
    assert passed(version, messages(version, COOKIE, IDENTIFIER + 1)) == []
