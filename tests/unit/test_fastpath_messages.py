"""What leaves in one message, seen by a peer whose kernel hands over messages whole: sizes, numbers, outer TOS."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP

from flannel_udp.dataplane.dataplane import DSCP_INHERIT
from flannel_udp.dataplane.offload import IP_RECVTOS, SOL_UDP, UDP_GRO
from flannel_udp.dataplane.reference import VnetHeader
from flannel_udp.options import NO_OFFLOAD, Offload
from tests.support.engine_rig import EngineRig, small_table

PEER = "127.0.0.2"
TCPV4 = 1


def packet(size: int, **fields: Any) -> bytes:
    return bytes(IP(src="10.1.1.5", dst="10.1.2.7", **fields) / UDP() / bytes(size - 28))


@pytest.fixture
def dscp() -> int:
    """The outer headers', unless a test says another."""
    return 0


@pytest.fixture
def rig(dscp: int) -> Iterator[EngineRig]:
    with EngineRig(small_table(), offload=Offload(), dscp=dscp) as rig:
        rig.peers[PEER].setsockopt(SOL_UDP, UDP_GRO, 1)
        rig.peers[PEER].setsockopt(socket.IPPROTO_IP, IP_RECVTOS, 1)
        yield rig


def messages(rig: EngineRig) -> list[tuple[int, int, int]]:
    """Return bytes, bytes of a datagram, and TOS of each message that the peer got."""
    got: list[tuple[int, int, int]] = []
    while True:
        try:
            data, controls, _, _ = rig.peers[PEER].recvmsg(70_000, 200)
        except BlockingIOError:
            return got
        values = {(level, kind): value for level, kind, value in controls}
        (segment,) = struct.unpack("=i", values.get((SOL_UDP, UDP_GRO), struct.pack("=i", len(data))))
        got.append((len(data), segment, values[socket.IPPROTO_IP, socket.IP_TOS][0]))


def test_a_message_has_at_most_64_packets(rig: EngineRig) -> None:
    """Linux before 6.9 takes no more (UDP_MAX_SEGMENTS)."""
    vnet, super_packet = tcp_super_packet(70 * 100, 100)
    rig.tun.send(vnet.pack() + super_packet)
    rig.poll()
    assert messages(rig) == [(64 * 140, 140, 0), (6 * 140, 140, 0)]


def test_a_message_has_at_most_65_507_bytes(rig: EngineRig) -> None:
    """As many as one datagram carries; 53 packets would make 65,508."""
    for _ in range(53):
        rig.from_tun(packet(1_236))
    rig.poll()
    assert messages(rig) == [(52 * 1_236, 1_236, 0), (1_236, 1_236, 0)]
    assert rig.engine.counters()["system_calls"]["udp_sends"] == 1
    assert rig.drops("out") == {}


def test_only_the_last_packet_of_a_message_is_shorter(rig: EngineRig) -> None:
    for size in (100, 100, 60, 60, 100, 200):
        rig.from_tun(packet(size))
    rig.poll()
    assert messages(rig) == [(260, 100, 0), (60, 60, 0), (100, 100, 0), (200, 200, 0)]


@pytest.mark.parametrize(
    ("dscp", "expected"),
    [
        (0, [(400, 100, 0), (100, 100, 1), (100, 100, 0)]),
        (DSCP_INHERIT, [(200, 100, 0), (200, 100, 0xB8), (100, 100, 0xB9), (100, 100, 0)]),
    ],
    ids=["default", "inherit"],
)
def test_packets_with_another_outer_tos_leave_in_another_message(
    rig: EngineRig, expected: list[tuple[int, int, int]]
) -> None:
    for tos in (0, 0, 0xB8, 0xB8, 0xB9, 0):
        rig.from_tun(packet(100, tos=tos))
    rig.poll()
    assert messages(rig) == expected


@pytest.mark.parametrize("dscp", range(64))
def test_with_a_dscp_of_its_own_the_outer_header_has_that_and_the_inner_ones_congestion_mark(dscp: int) -> None:
    with EngineRig(small_table(), offload=Offload(), dscp=dscp) as rig:
        peer = rig.peers[PEER]
        peer.setsockopt(socket.IPPROTO_IP, IP_RECVTOS, 1)
        for ecn in range(4):
            rig.from_tun(packet(100, tos=0x28 | ecn))
        rig.poll()
        for ecn in range(4):
            data, controls, _, _ = peer.recvmsg(200, 100)
            assert controls[0][2][0] == dscp << 2 | ecn
            assert data[1] == 0x28 | ecn


def tcp_super_packet(payload_len: int, gso_size: int) -> tuple[VnetHeader, bytes]:
    """Return a super-packet whose checksum field is to be ignored."""
    whole = IP(src="10.1.1.5", dst="10.1.2.7") / TCP(flags="A") / os.urandom(payload_len)
    return VnetHeader(1, TCPV4, 40, gso_size, 20, 16), bytes(whole)


@pytest.mark.parametrize("offload", [NO_OFFLOAD, Offload()], ids=["one by one", "in runs"])
def test_more_than_waits_at_once_leaves_all_the_same_and_in_order(offload: Offload) -> None:
    """Super-packets that become more bytes and more packets than the send queue holds."""
    with EngineRig(small_table(), offload=offload) as rig:
        expected = b""
        for payload_len, gso_size in ((60_000, 1_400), (60_000, 1_400), (60_000, 1_400), (30_000, 20), (64_000, 9_000)):
            vnet, super_packet = tcp_super_packet(payload_len, gso_size)
            rig.tun.send(vnet.pack() + super_packet)
            expected += super_packet[40:]
        rig.poll()
        assert b"".join(datagram[40:] for datagram in rig.to_peer(PEER)) == expected
        assert rig.drops("out") == {}
