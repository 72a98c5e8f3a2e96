"""Whose turn it is when packets wait both ways: either direction moves as much before the other does."""

from __future__ import annotations

import socket
import struct

import pytest
from scapy.layers.inet import IP, UDP

from flannel_udp.dataplane.offload import SOL_UDP, UDP_SEGMENT
from flannel_udp.options import Offload
from tests.support.engine_rig import AGENT, EngineRig, small_table

PEER, STRANGER = "127.0.0.2", "127.0.0.9"
RUN_PACKETS = 64
TURN_PACKETS, TURN_BYTES = 256, 180 * 1024
LONGEST_BUNDLE_BYTES = 65_507


def packet(src: str, dst: str, size: int) -> bytes:
    return bytes(IP(src=src, dst=dst, flags="DF") / UDP() / bytes(size - 28))


def send_runs(rig: EngineRig, sender: str, n: int, run: int, size: int) -> None:
    """Let `sender` send `n` runs of `run` packets of `size` bytes; each comes in one bundle."""
    controls = [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", size))]
    runs = packet("10.1.2.7", "10.1.1.5", size) * run
    for _ in range(n):
        rig.peers[sender].sendmsg([runs], controls, socket.MSG_DONTWAIT, (str(AGENT), rig.port))


def learn_bundles(rig: EngineRig, sender: str, run: int, size: int) -> None:
    """Let the engine find out how long the bundles are that come."""
    send_runs(rig, sender, 1, run, size)
    rig.poll()


@pytest.mark.parametrize("sender", [PEER, STRANGER])
def test_small_packets_both_ways_take_as_many_turns_one_way_as_the_other(sender: str) -> None:
    n = 32
    with EngineRig(small_table(), (PEER, STRANGER), offload=Offload()) as rig:
        learn_bundles(rig, sender, RUN_PACKETS, 40)
        before = rig.engine.counters()["system_calls"]
        send_runs(rig, sender, n, RUN_PACKETS, 40)
        small = packet("10.1.1.5", "10.1.2.7", 40)
        for _ in range(n * RUN_PACKETS):
            rig.from_tun(small)
        rig.poll()
        calls = rig.engine.counters()["system_calls"]
        # One receive a turn, and one send.
        assert calls["udp_receives"] - before["udp_receives"] == n * RUN_PACKETS // TURN_PACKETS
        assert calls["udp_sends"] == n * RUN_PACKETS // TURN_PACKETS
        assert rig.counters("out")["packets"] == n * RUN_PACKETS


def test_a_turn_inward_is_over_after_as_many_bytes_as_one_outward() -> None:
    size, n = 1400, 30
    run = LONGEST_BUNDLE_BYTES // size
    with EngineRig(small_table(), offload=Offload()) as rig:
        learn_bundles(rig, PEER, run, size)
        before = rig.engine.counters()["system_calls"]["udp_receives"]
        send_runs(rig, PEER, n, run, size)
        rig.poll()
        assert rig.drops("in") == {}
        turns = rig.engine.counters()["system_calls"]["udp_receives"] - before
        assert turns >= n * run * size // (TURN_BYTES + LONGEST_BUNDLE_BYTES)


def test_what_comes_one_by_one_is_received_many_a_call_once_that_has_shown() -> None:
    n = 3_000
    with EngineRig(small_table(), offload=Offload()) as rig:
        learn_bundles(rig, PEER, LONGEST_BUNDLE_BYTES // 1400, 1400)
        single = packet("10.1.2.7", "10.1.1.5", 100)
        for _ in range(n):
            rig.from_peer(PEER, single)
        rig.poll()
        assert rig.drops("in") == {}
        assert rig.engine.counters()["system_calls"]["udp_receives"] <= n // 64 + 6
