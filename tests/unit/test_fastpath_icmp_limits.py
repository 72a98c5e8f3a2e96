"""Whose floods suppress whose ICMP answers: nobody's another's, and none of the others "fragmentation needed"."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, UDP

from tests.support.engine_rig import EngineRig, small_table

POD, OTHER_POD = "10.1.1.5", "10.1.1.6"
UNASSIGNED = "10.1.9.9"
FLOOD = 1_000
FEW = 10
"""Packets at once from one pod: all are answered."""
WAITING = 50
"""Packets that the tunnel device holds, be they long."""
BEYOND_A_DATAGRAM = 65_520
"""Bytes of a packet that the loopback interface does not carry in one datagram."""


@pytest.fixture
def rig() -> Iterator[EngineRig]:
    # Not a raw socket, which needs root: what the engine tries to send by it counts as failed.
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as icmp,
        EngineRig(small_table(), icmp_fd=icmp.fileno()) as rig,
    ):
        yield rig


def packet(source: str, target: str = UNASSIGNED, size: int = 28) -> bytes:
    return bytes(IP(src=source, dst=target, flags="DF") / UDP() / bytes(size - 28))


def answers(rig: EngineRig, packets: list[bytes]) -> int:
    """Let the host send packets; return how many of them the engine answers."""
    before = rig.engine.counters()["icmp"]["failed"]
    for start in range(0, len(packets), WAITING):
        for each in packets[start : start + WAITING]:
            rig.from_tun(each)
        rig.poll()
    return int(rig.engine.counters()["icmp"]["failed"] - before)


def too_big(source: str) -> bytes:
    return packet(source, "10.1.2.7", BEYOND_A_DATAGRAM)


def test_one_pods_flood_suppresses_no_other_pods_answer(rig: EngineRig) -> None:
    assert answers(rig, [packet(POD)] * FLOOD) < FLOOD
    assert answers(rig, [packet(OTHER_POD)] * FEW) == FEW


def test_no_flood_suppresses_fragmentation_needed(rig: EngineRig) -> None:
    sources = [f"10.1.1.{i}" for i in range(1, 251)]
    assert answers(rig, [packet(source) for source in sources * 4]) < 4 * len(sources)
    assert answers(rig, [too_big(POD)] * FEW) == FEW


def test_a_flood_of_what_is_too_big_suppresses_no_other_pods_fragmentation_needed(rig: EngineRig) -> None:
    answers(rig, [too_big(POD)] * 200)
    assert answers(rig, [too_big(OTHER_POD)] * FEW) == FEW


def test_what_may_not_be_answered_uses_nothing_up(rig: EngineRig) -> None:
    multicast = bytes(IP(src=POD, dst="224.0.0.5") / UDP())
    error = bytes(IP(src=POD, dst=UNASSIGNED, proto=1) / bytes([3, *bytes(7)]))
    assert answers(rig, [multicast, error] * FLOOD) == 0
    assert rig.engine.counters()["icmp"]["rate_limited"] == 0
    assert answers(rig, [packet(POD)] * FEW) == FEW
