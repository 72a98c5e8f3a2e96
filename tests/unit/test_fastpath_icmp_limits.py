"""Whose floods suppress whose ICMP answers: nobody's another's, and none what too big packets are told."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6

from flannel_udp._fastpath.routes import PEERS_FROM
from tests.support.engine_rig import PEERS, EngineRig, small_table

POD, OTHER_POD = 5, 6
UNASSIGNED = 9
FLOOD = 1_000
FEW = 10
"""Packets at once from one pod: all are answered."""
WAITING = 50
"""Packets that the tunnel device holds, be they long."""
LIMIT = 1_300
"""Bytes of a packet that the path to the peer carries."""


@pytest.fixture(params=[4, 6], ids=["IPv4", "IPv6"])
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def rig(version: int) -> Iterator[EngineRig]:
    # Not a raw socket, which needs root: what the engine tries to send by it counts as failed.
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as icmp,
        EngineRig(small_table(version=version), icmp_fd=icmp.fileno()) as rig,
    ):
        rig.engine.limit_path_mtu(PEERS_FROM, int(ip_address(PEERS[version][0])), LIMIT)
        yield rig


def packet(version: int, pod: int, subnet: int = UNASSIGNED, size: int = 48) -> bytes:
    """A packet of one of our pods to the pod 9 of a subnet."""
    if version == 6:
        ip = IPv6(src=f"fd00:10:244:1::{pod}", dst=f"fd00:10:244:{subnet}::9")
        return bytes(ip / UDP() / bytes(size - 48))
    return bytes(IP(src=f"10.1.1.{pod}", dst=f"10.1.{subnet}.9", flags="DF") / UDP() / bytes(size - 28))


def answers(rig: EngineRig, packets: list[bytes]) -> int:
    """Let the host send packets; return how many of them the engine answers."""
    before = rig.engine.counters()["icmp"]["failed"]
    for start in range(0, len(packets), WAITING):
        for each in packets[start : start + WAITING]:
            rig.from_tun(each)
        rig.poll()
    return int(rig.engine.counters()["icmp"]["failed"] - before)


def too_big(version: int, pod: int) -> bytes:
    return packet(version, pod, 2, LIMIT + 1)


def test_one_pods_flood_suppresses_no_other_pods_answer(version: int, rig: EngineRig) -> None:
    assert answers(rig, [packet(version, POD)] * FLOOD) < FLOOD
    assert answers(rig, [packet(version, OTHER_POD)] * FEW) == FEW


def test_no_flood_suppresses_what_too_big_packets_are_told(version: int, rig: EngineRig) -> None:
    flood = [packet(version, pod) for pod in range(1, 251)] * 4
    assert answers(rig, flood) < len(flood)
    assert answers(rig, [too_big(version, POD)] * FEW) == FEW


def test_a_flood_of_what_is_too_big_suppresses_no_other_pods_answer_to_that(version: int, rig: EngineRig) -> None:
    answers(rig, [too_big(version, POD)] * 200)
    assert answers(rig, [too_big(version, OTHER_POD)] * FEW) == FEW


def test_what_may_not_be_answered_uses_nothing_up(version: int, rig: EngineRig) -> None:
    if version == 6:
        multicast = bytes(IPv6(src="fd00:10:244:1::5", dst="ff0e::1") / UDP())
        error = bytes(IPv6(src="fd00:10:244:1::5", dst="fd00:10:244:9::9", nh=58) / bytes([1, *bytes(7)]))
    else:
        multicast = bytes(IP(src="10.1.1.5", dst="224.0.0.5") / UDP())
        error = bytes(IP(src="10.1.1.5", dst="10.1.9.9", proto=1) / bytes([3, *bytes(7)]))
    assert answers(rig, [multicast, error] * FLOOD) == 0
    assert rig.engine.counters()["icmp"]["rate_limited"] == 0
    assert answers(rig, [packet(version, POD)] * FEW) == FEW
