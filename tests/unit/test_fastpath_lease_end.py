"""Past the end of the lease the engine forwards nothing either way, whoever else is awake or not."""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.packet import Raw

from flannel_udp.dataplane.reference import VnetHeader, with_ttl
from flannel_udp.options import NO_OFFLOAD, Offload
from tests.support.agents import wait_for
from tests.support.engine_rig import EngineRig, small_table
from tests.support.refusals import Refusal, refused, thread_waits_in
from tests.support.repair import with_partial_checksum

LEASE_ASKED_EVERY = 16
OUT = bytes(IP(src="10.1.1.5", dst="10.1.2.7") / UDP() / b"12345")
IN = bytes(IP(src="10.1.2.7", dst="10.1.1.5") / UDP() / b"12345")


@pytest.fixture
def rig() -> Iterator[EngineRig]:
    with EngineRig(small_table()) as rig:
        yield rig


def now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def send_both_ways(rig: EngineRig) -> int:
    """Send a packet each way; return how many arrived."""
    rig.from_tun(OUT)
    rig.from_peer("127.0.0.2", IN)
    assert rig.poll() == 2
    return len(rig.to_peer("127.0.0.2") + rig.to_tun())


def test_an_engine_that_was_told_nothing_forwards(rig: EngineRig) -> None:
    assert send_both_ways(rig) == 2


def test_nothing_passes_after_the_end_and_each_packet_is_counted(rig: EngineRig) -> None:
    rig.engine.forward_until(now_ns())
    assert send_both_ways(rig) == 0
    assert rig.counters("out") == rig.counters("in") == {"packets": 0, "bytes": 0, "drops": {"lease_expired": 1}}


def test_packets_pass_until_the_end_and_again_once_it_is_moved(rig: EngineRig) -> None:
    rig.engine.forward_until(now_ns() + 60 * 10**9)
    assert send_both_ways(rig) == 2
    rig.engine.forward_until(0)
    assert send_both_ways(rig) == 0
    rig.engine.forward_until(now_ns() + 60 * 10**9)
    assert send_both_ways(rig) == 2
    rig.engine.forward_until(None)
    assert send_both_ways(rig) == 2
    assert rig.drops("out") == rig.drops("in") == {"lease_expired": 1}


def test_the_time_runs_out_by_itself(rig: EngineRig) -> None:
    assert send_both_ways(rig) == 2
    end_ns = now_ns() + 20_000_000
    rig.engine.forward_until(end_ns)
    while now_ns() < end_ns:
        time.sleep(0.001)
    assert send_both_ways(rig) == 0


def test_of_super_packets_every_packet_is_counted() -> None:
    whole = bytes(IP(src="10.1.1.5", dst="10.1.2.7", flags="DF") / UDP() / Raw(bytes(300)))
    with EngineRig(small_table(), offload=Offload()) as rig:
        rig.engine.forward_until(0)
        vnet = VnetHeader(flags=1, gso_type=5, hdr_len=28, gso_size=100, csum_start=20, csum_offset=6)
        rig.tun.send(vnet.pack() + with_partial_checksum(whole))
        for _ in range(3):
            rig.from_peer("127.0.0.2", IN)
        rig.poll()
        assert rig.to_peer("127.0.0.2") == rig.to_tun() == []
        assert (rig.drops("out"), rig.drops("in")) == ({"lease_expired": 3}, {"lease_expired": 3})


def test_a_time_that_is_none_is_refused(rig: EngineRig) -> None:
    for wrong in (-1, 2**64):
        with pytest.raises(OverflowError):
            rig.engine.forward_until(wrong)
    assert send_both_ways(rig) == 2


def test_nobody_is_answered_after_the_end() -> None:
    unroutable = bytes(IP(src="10.1.1.5", dst="10.1.9.7") / UDP())
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as icmp,
        EngineRig(small_table(), icmp_fd=icmp.fileno()) as rig,
    ):
        rig.engine.forward_until(now_ns())
        rig.from_tun(unroutable)
        rig.poll()
        assert rig.drops("out") == {"no_route": 1}
        assert rig.engine.counters()["icmp"] == {"sent": 0, "rate_limited": 0, "failed": 0}


@pytest.mark.parametrize("refusals", [[], [Refusal("writev", errno.EINVAL, at_least={2: 3})]], ids=["alone", "joined"])
def test_an_end_amid_a_batch_lets_no_more_than_16_packets_pass(refusals: list[Refusal]) -> None:
    """The engine stands still in the midst of its writes, as a stopped agent may; the end comes meanwhile."""
    n = 60
    ip = IP(src="10.1.2.7", dst="10.1.1.5", flags="DF")
    packets = [bytes(ip / TCP(flags="A", seq=i) / b"x") for i in range(n)]
    with EngineRig(small_table(), offload=Offload() if refusals else NO_OFFLOAD) as rig:
        rig.let_writes_wait()
        for packet in packets:
            rig.from_peer("127.0.0.2", packet)
        thread = threading.Thread(target=lambda: refused(refusals, rig.poll))
        thread.start()
        wait_for("it stands still", lambda: thread_waits_in("writev"))
        passed = rig.counters("in")["packets"]
        rig.engine.forward_until(0)
        written = rig.to_tun()
        while thread.is_alive():
            thread.join(0.01)
            written += rig.to_tun()
        assert passed < len(written) <= passed + LEASE_ASKED_EVERY + 1
        assert written == [with_ttl(packet, 63) for packet in packets[: len(written)]]
        assert rig.drops("in") == {"lease_expired": n - len(written)}
