"""What moving packets costs, and that an engine comes back from it."""

from __future__ import annotations

import sys
import threading

from scapy.layers.inet import IP, UDP

from flannel_udp.options import Offload
from tests.support.engine_rig import EngineRig, small_table


def packet(size: int) -> bytes:
    return bytes(IP(src="10.1.1.5", dst="10.1.2.7") / UDP() / bytes(size - 28))


def test_a_busy_engine_returns_while_packets_trickle_in() -> None:
    with EngineRig(small_table()) as rig:
        stop = threading.Event()

        def trickle() -> None:
            small = packet(100)
            for _ in range(10_000):
                if stop.wait(0.002):
                    return
                rig.from_tun(small)

        feeder = threading.Thread(target=trickle)
        feeder.start()
        try:
            rig.engine.poll(busy_us=1_000_000)
            assert feeder.is_alive()  # more would have come, for 20 s
        finally:
            stop.set()
            feeder.join()


def test_moving_packets_allocates_nothing() -> None:
    with EngineRig(small_table(), offload=Offload()) as rig:
        burst = [packet(200)] * 2_000
        for data in burst:
            rig.from_tun(data)
        rig.poll_alone()
        rig.to_peer("127.0.0.2")
        for data in burst:
            rig.from_tun(data)
        before = sys.getallocatedblocks()
        rig.poll_alone()
        assert sys.getallocatedblocks() - before < 20


def test_system_calls_for_a_thousand_packets() -> None:
    with EngineRig(small_table(), offload=Offload()) as rig:
        small = packet(100)
        for _ in range(1_000):
            rig.from_tun(small)
        rig.poll()
        calls = rig.engine.counters()["system_calls"]
        # One read a packet: a TUN without super-packets gives one at a time. One send for each 64 of them.
        assert calls["tun_reads"] <= 1_000 + 17
        assert calls["udp_sends"] <= 17
