"""Captured packets are what the packet path saw, with what became of them; who does not read them holds up nobody."""

from __future__ import annotations

import json
import random
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Any

import pytest
from scapy.layers import vxlan
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6

from flannel_udp._fastpath.capture_ring import RECORD_BYTES, CaptureRing
from flannel_udp._fastpath.drops import DropReason
from flannel_udp.admin.captured import RECORD, Captured, Head, read_records
from flannel_udp.admin.show_capture import packet_line
from flannel_udp.dataplane import reference
from flannel_udp.dataplane.capture import Capture, describe_records
from flannel_udp.dataplane.reference import VnetHeader
from flannel_udp.errors import FlannelError
from flannel_udp.model import PLACES, CaptureWish
from flannel_udp.options import Offload
from tests.fuzz import target
from tests.support.engine_rig import AGENT, IPIP, VXLAN, EngineRig, small_table
from tests.support.repair import TCP as TCP_PROTOCOL
from tests.support.repair import with_partial_checksum
from tests.support.traffic import Flow

HEAD: Head = json.loads(json.dumps(describe_records()))
PEER, OTHER = "127.0.0.2", "127.0.0.3"
PEER6 = "2001:db8::2"


def ping(source: str = "10.1.1.5", destination: str = "10.1.2.7", size: int = 56) -> bytes:
    return bytes(IP(src=source, dst=destination, ttl=60) / ICMP() / bytes(size))


def ping6(source: str = "fd00:10:244:1::5", destination: str = "fd00:10:244:2::7") -> bytes:
    return bytes(IPv6(src=source, dst=destination, hlim=60) / UDP(sport=1, dport=2) / b"hello")


class Taken:
    """A capture of a rig's engines: packets so far, and the last counts."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self.counts: dict[str, Any] = {}

    def all(self) -> list[Captured]:
        """Return what was noted since the last time, by time."""
        line, records = self._capture.take(even_none=True).split(b"\n", 1)
        self.counts = json.loads(line)
        assert self.counts["bytes"] == len(records)
        return sorted(read_records(HEAD, records), key=lambda packet: packet.time_ns)

    def at(self, place: str) -> list[Captured]:
        return [packet for packet in self.all() if packet.place == place]


@contextmanager
def captured(rig: EngineRig, **wish: Any) -> Iterator[Taken]:
    """Capture what is wished for, with the rig's engines not polled by anybody else at the end."""
    capture = Capture(lambda: rig.engines, CaptureWish(**wish))
    taken = Taken(capture)
    taken.all()
    yield taken
    for engine in rig.engines:
        engine.capture_into(None)
        assert engine.reclaim() == 0


def verdicts(packets: list[Captured]) -> list[tuple[str, str]]:
    return [(packet.place, packet.reason) for packet in packets]


def test_a_record_is_what_its_readers_take_it_for() -> None:
    assert RECORD.size == RECORD_BYTES == HEAD["record_bytes"]
    assert HEAD["encapsulations"] == ["udp", "vxlan", "ipip"]
    assert HEAD["reasons"] == [reason.name.lower() for reason in DropReason if reason < DropReason.DROP_REASONS]


def test_a_packet_that_goes_out_is_seen_as_it_was_read_and_as_it_is_sent() -> None:
    with EngineRig(small_table()) as rig, captured(rig) as taken:
        rig.from_tun(ping())
        rig.poll()
        inner, outer = taken.all()
        assert (inner.place, inner.reason, inner.data, inner.n_bytes) == ("out inner", "keep", ping(), len(ping()))
        assert (outer.place, outer.reason, [outer.data]) == ("out outer", "keep", rig.to_peer(PEER))
        assert inner.peer == outer.peer == IPv4Address(PEER)
        frame, n_bytes = outer.frame()
        sent = IP(frame)
        assert (sent.src, sent.dst, sent[UDP].sport, sent[UDP].dport) == (str(AGENT), PEER, rig.port, rig.port)
        assert (sent.len, n_bytes, len(frame)) == (len(frame), len(frame), len(ping()) + 28)
        assert bytes(sent[UDP].payload) == outer.data
        checksum = sent.chksum
        del sent.chksum
        assert IP(bytes(sent)).chksum == checksum


def test_a_packet_that_comes_in_is_seen_as_it_was_received_and_as_it_is_written() -> None:
    with EngineRig(small_table()) as rig, captured(rig) as taken:
        packet = ping("10.1.2.7", "10.1.1.5")
        rig.from_peer(PEER, packet)
        rig.poll()
        outer, inner = taken.all()
        assert (outer.place, outer.reason, outer.data, outer.peer) == ("in outer", "keep", packet, IPv4Address(PEER))
        assert (inner.place, inner.reason, [inner.data]) == ("in inner", "keep", rig.to_tun())
        received = IP(outer.frame()[0])
        assert (received.src, received.dst, received[UDP].sport) == (PEER, str(AGENT), rig.port)


def test_each_place_tells_what_it_drops_and_why() -> None:
    with EngineRig(small_table()) as rig, captured(rig) as taken:
        rig.from_tun(ping(destination="10.9.9.9"))
        rig.from_tun(b"\x45")
        rig.from_peer(PEER, ping("10.1.3.7", "10.1.1.5"))
        rig.from_peer(PEER, b"")
        rig.poll()
        assert verdicts(taken.all()) == [
            ("out inner", "no_route"),
            ("out inner", "too_short"),
            ("in outer", "spoofed_source"),
            ("in outer", "too_short"),
        ]
        rig.engine.forward_until(0)
        rig.from_tun(ping())
        rig.from_peer(PEER, ping("10.1.2.7", "10.1.1.5"))
        rig.poll()
        packets = taken.all()
        assert verdicts(packets) == [
            ("out inner", "keep"),
            ("out outer", "lease_expired"),
            ("in outer", "keep"),
            ("in inner", "lease_expired"),
        ]
        assert {packet.peer for packet in packets} == {IPv4Address(PEER)}


def test_a_super_packet_is_one_inner_packet_and_many_outer_ones() -> None:
    with EngineRig(small_table(), offload=Offload()) as rig, captured(rig) as taken:
        flow = Flow(IPv4Address("10.1.1.5"), IPv4Address("10.1.2.7"), TCP_PROTOCOL, 0)
        whole = with_partial_checksum(flow.next(bytes(10 * 1400)))
        rig.tun.send(VnetHeader(1, 1, 40, 1400, csum_start=20, csum_offset=16).pack() + whole)
        rig.poll()
        inner, *outer = taken.all()
        assert (inner.data, inner.segment_bytes, inner.n_bytes) == (whole, 1400, len(whole))
        assert [packet.data for packet in outer] == rig.to_peer(PEER)
        assert len(outer) == 10
        times = {packet.time_ns for packet in outer}
        assert inner.time_ns < min(times)


def test_what_is_joined_is_many_outer_packets_and_one_inner_one() -> None:
    with EngineRig(small_table(), offload=Offload()) as rig, captured(rig) as taken:
        flow = Flow(IPv4Address("10.1.2.7"), IPv4Address("10.1.1.5"), TCP_PROTOCOL, 0)
        packets = [flow.next(bytes(1400)) for _ in range(10)]
        for packet in packets:
            rig.from_peer(PEER, packet)
        rig.poll()
        *outer, inner = taken.all()
        assert [packet.data for packet in outer] == packets
        [(vnet, written)] = rig.to_tun_raw()
        assert (inner.data, inner.segment_bytes, inner.n) == (written, vnet.gso_size, 10)


@pytest.mark.parametrize("encapsulation", [VXLAN, IPIP])
def test_other_encapsulations_are_seen_with_all_that_is_in_front(encapsulation: Any) -> None:
    table = small_table(encapsulation)
    with EngineRig(table) as rig, captured(rig) as taken:
        rig.from_tun(ping())
        datagram = reference.from_the_wire(ping("10.1.2.7", "10.1.1.5"), ip_address(PEER), table)
        rig.from_peer(PEER, datagram)
        rig.poll()
        packets = {packet.place: packet for packet in taken.all()}
        assert list(packets) == list(PLACES)
        assert [packets["out outer"].data] == rig.to_peer(PEER)
        assert packets["in outer"].data == datagram
        for packet in packets.values():
            inner = packet.inner()
            assert inner is not None
            assert (inner.protocol, inner.n_bytes) == (1, len(ping()))
        if encapsulation is VXLAN:
            sent = IP(packets["out outer"].frame()[0])
            sent[UDP].decode_payload_as(vxlan.VXLAN)
            assert sent[vxlan.VXLAN].vni == 1
            assert sent[ICMP].type == 8
        else:
            assert IP(packets["out outer"].frame()[0])[IP].proto == 4
            assert packets["in outer"].frame() == (datagram, len(datagram))


def test_both_families_on_one_device_are_seen_by_their_own_engines() -> None:
    with EngineRig(small_table(), beside=small_table(version=6)) as rig, captured(rig) as taken:
        rig.from_tun(ping6())
        rig.from_peer(PEER6, ping6("fd00:10:244:2::7", "fd00:10:244:1::5"))
        rig.from_tun(ping6(destination="fd00:99::1"))
        rig.from_tun(ping())
        rig.poll()
        packets = taken.all()
        assert sorted(verdicts(packets)) == sorted(
            [
                ("out inner", "keep"),
                ("out inner", "keep"),
                ("out inner", "no_route"),
                *[("out outer", "keep")] * 2,
                ("in outer", "keep"),
                ("in inner", "keep"),
            ]
        )
        [outer] = [packet for packet in packets if packet.place == "out outer" and packet.version == 6]
        sent = IPv6(outer.frame()[0])
        assert (sent.dst, sent.plen, sent[UDP].dport) == (PEER6, len(outer.data) + 8, rig.agent(6)[1])


def test_the_source_port_is_the_one_that_the_peer_sees() -> None:
    with EngineRig(small_table(), source_ports=4) as rig, captured(rig) as taken:
        for port in range(16):
            rig.from_tun(bytes(IP(src="10.1.1.5", dst="10.1.2.7") / UDP(sport=port, dport=7) / b"x"))
        rig.poll()
        noted = [(packet.data, packet.ports[0]) for packet in taken.at("out outer")]
        seen = [rig.peers[PEER].recvfrom(100) for _ in noted]
        assert sorted(noted) == sorted((data, sender[1]) for data, sender in seen)
        assert len({port for _, port in noted}) > 1


def test_only_what_is_wanted_is_noted() -> None:
    with EngineRig(small_table()) as rig:

        def move() -> None:
            rig.from_tun(ping())
            rig.from_tun(ping(destination="10.9.9.9"))
            rig.from_peer(PEER, ping("10.1.3.7", "10.1.1.5"))
            rig.poll()

        with captured(rig, dropped=True) as taken:
            move()
            assert verdicts(taken.all()) == [("out inner", "no_route"), ("in outer", "spoofed_source")]
            assert taken.counts["taken"] == [1, 0, 1, 0]
        with captured(rig, reasons=("spoofed_source",)) as taken:
            move()
            assert verdicts(taken.all()) == [("in outer", "spoofed_source")]
        with captured(rig, places=("out outer",)) as taken:
            move()
            assert verdicts(taken.all()) == [("out outer", "keep")]
        with captured(rig, every=3, places=("out inner",)) as taken:
            for _ in range(10):
                move()
            assert len(taken.all()) == 20 // 3
        with captured(rig, snap_bytes=64) as taken:
            move()
            assert {(len(packet.data), packet.n_bytes) for packet in taken.all()} == {(64, 84)}
        with pytest.raises(FlannelError, match="nothing for the reason 'nonsense'"):
            Capture(lambda: rig.engines, CaptureWish(reasons=("nonsense",)))


def everything(n_bytes: int) -> CaptureRing:
    return CaptureRing(n_bytes, 65_535, 0b1111, (1 << DropReason.DROP_REASONS) - 1)


def test_nothing_is_noted_before_and_after() -> None:
    ring = everything(1 << 16)
    with EngineRig(small_table()) as rig:
        rig.from_tun(ping())
        rig.poll()
        rig.engine.capture_into(ring)
        rig.engine.capture_into(None)
        rig.from_tun(ping())
        rig.poll()
        assert (ring.take(), sum(ring.counts()[0])) == (b"", 0)


def test_what_is_read_while_the_engine_writes_is_whole() -> None:
    ring = everything(1 << 13)
    packets = [ping(size=size) for size in range(700)] * 2
    with EngineRig(small_table()) as rig:
        rig.engine.capture_into(ring)
        done = threading.Event()

        def move() -> None:
            for n, packet in enumerate(packets):
                rig.from_tun(packet)
                if n % 20 == 0:
                    rig.engine.poll()
            rig.poll()
            done.set()

        mover = threading.Thread(target=move)
        mover.start()
        noted: list[Captured] = []
        try:
            while not done.wait(0.0002):
                noted += read_records(HEAD, ring.take())
        finally:
            mover.join()
        noted += read_records(HEAD, ring.take())
        rig.engine.capture_into(None)
    taken, lost = ring.counts()
    assert len(noted) == sum(taken) - sum(lost) == 2 * len(packets) - sum(lost)
    whole = set(packets)
    inner = [packet.data for packet in noted if packet.place == "out inner"]
    assert set(inner) <= whole
    order = iter(packets)
    assert all(packet in order for packet in inner)  # in the order in which they were sent


def test_a_full_ring_holds_up_no_packet_and_counts_what_it_lost() -> None:
    ring = everything(1 << 12)
    with EngineRig(small_table()) as rig:
        rig.engine.capture_into(ring)
        packet = ping()
        for _ in range(200):
            rig.from_tun(packet)
        rig.poll()
        assert len(rig.to_peer(PEER)) == 200
        noted = list(read_records(HEAD, ring.take()))
        taken, lost = ring.counts()
        assert taken == (200, 200, 0, 0)
        assert sum(lost) == 400 - len(noted)
        assert 10 < len(noted) < 30
        rig.from_tun(ping())
        rig.poll()
        assert len(list(read_records(HEAD, ring.take()))) == 2
        rig.engine.capture_into(None)


def test_records_stay_whole_where_the_ring_ends() -> None:
    dice = random.Random(7)
    ring = everything(1 << 12)
    with EngineRig(small_table()) as rig:
        rig.engine.capture_into(ring)
        for _ in range(300):
            packet = ping(size=dice.randrange(1000))
            rig.from_tun(packet)
            rig.poll()
            inner, outer = read_records(HEAD, ring.take())
            assert (inner.data, [outer.data]) == (packet, rig.to_peer(PEER))
        rig.engine.capture_into(None)
    assert sum(ring.counts()[1]) == 0


def test_no_more_is_taken_at_once_than_was_asked_for_but_one_whole_record() -> None:
    ring = everything(1 << 16)
    with EngineRig(small_table()) as rig:
        rig.engine.capture_into(ring)
        for size in (0, 500, 10):
            rig.from_tun(ping(size=size))
        rig.poll()
        rig.engine.capture_into(None)
    taken: list[bytes] = []
    while part := ring.take(300):
        taken.append(part)
    assert [len(list(read_records(HEAD, part))) for part in taken] == [1, 1, 2, 1, 1]
    assert all(len(part) <= 300 or len(list(read_records(HEAD, part))) == 1 for part in taken)


def test_capturing_allocates_nothing_a_packet() -> None:
    with EngineRig(small_table(), offload=Offload()) as rig, captured(rig) as taken:
        packet = ping()
        for _ in range(1_000):
            rig.from_tun(packet)
        before = sys.getallocatedblocks()
        rig.poll_alone()
        assert sys.getallocatedblocks() - before < 20
        assert len(taken.all()) == 2_000


def test_the_engine_does_what_its_twin_does_also_while_it_is_watched() -> None:
    """With all that the fuzzer keeps, and a ring that is full now and then; what comes out of it can be shown."""
    n_packets = n_lost = 0
    try:
        for file in sorted((Path(__file__).parents[1] / "fuzz" / "corpus").iterdir()):
            data = file.read_bytes()
            rings = [everything(1 << 14) for _ in range(2)]
            for engine, ring in zip(target.rig_of(data[0] % len(target.SETTINGS)).engines, rings, strict=False):
                engine.capture_into(ring)
            target.run(data)
            for ring in rings:
                n_lost += sum(ring.counts()[1])
                for packet in read_records(HEAD, ring.take()):
                    n_packets += 1
                    assert len(packet.data) <= packet.n_bytes
                    assert packet_line(packet, HEAD)
                    packet.frame()
    finally:
        target.close()
    assert n_packets > 1_000
    assert n_lost > 100


@pytest.mark.parametrize(
    ("n_bytes", "places", "reasons", "every"),
    [(100, 15, 1, 1), (4096, 16, 1, 1), (4096, 1, 1 << 32, 1), (4096, 1, 1, 0)],
)
def test_a_ring_that_makes_no_sense_is_refused(n_bytes: int, places: int, reasons: int, every: int) -> None:
    with pytest.raises(ValueError, match=r"power of two|there are"):
        CaptureRing(n_bytes, 64, places, reasons, every)


def test_tcp_is_read_behind_what_stands_in_front_of_it() -> None:
    with EngineRig(small_table()) as rig, captured(rig) as taken:
        rig.from_tun(bytes(IP(src="10.1.1.5", dst="10.1.2.7") / TCP(sport=40_000, dport=80, flags="S")))
        rig.poll()
        for packet in taken.all():
            inner = packet.inner()
            assert inner is not None
            assert (inner.ports, inner.flags) == ((40_000, 80), 2)
