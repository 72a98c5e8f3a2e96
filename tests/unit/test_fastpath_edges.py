"""The edges of splitting, joining, answering and swapping tables: one byte, one packet or one batch to either side."""

from __future__ import annotations

import random
import socket
import struct
import threading
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP

from flannel_udp._fastpath import icmp
from flannel_udp._fastpath.drops import DropReason
from flannel_udp.dataplane import reference
from flannel_udp.dataplane.offload import SOL_UDP, UDP_SEGMENT
from flannel_udp.dataplane.reference import ReferenceTable, VnetHeader
from flannel_udp.model import Address, Prefix
from flannel_udp.options import NO_OFFLOAD, Offload
from tests.support.agents import wait_for
from tests.support.engine_rig import AGENT, EngineRig, compile_table, small_table
from tests.support.traffic import Flow

TCPV4, UDP_L4 = 1, 5
PEER = "127.0.0.2"


def tcp(payload: bytes, seq: int = 0, **fields: Any) -> bytes:
    return bytes(IP(src="10.1.2.7", dst="10.1.1.5", flags="DF") / TCP(seq=seq, flags="A", **fields) / payload)


def udp(payload: bytes, **fields: Any) -> bytes:
    return bytes(IP(src="10.1.2.7", dst="10.1.1.5", flags="DF") / UDP(sport=5, dport=6, **fields) / payload)


def summed(packet: bytes) -> bytes:
    """Return a UDP packet with the checksum over all that is behind the IP header, whatever the UDP header says."""
    pseudo = packet[12:20] + b"\0\x11" + (len(packet) - 20).to_bytes(2, "big")
    value = reference.checksum(pseudo + packet[20:26] + b"\0\0" + packet[28:])
    return packet[:26] + value.to_bytes(2, "big") + packet[28:]


def written(packets: list[bytes], offload: Offload | None = None) -> list[tuple[VnetHeader, bytes]]:
    """Return what the engine writes when a peer sends these; all must be there again after splitting."""
    with EngineRig(small_table(), offload=offload or Offload()) as rig:
        for packet in packets:
            rig.from_peer(PEER, packet)
        rig.poll()
        writes = rig.to_tun_raw()
    again = [segment for vnet, data in writes for segment in reference.expand(vnet, data) or []]
    assert [data[20:] for data in again] == [data[20:] for data in packets]
    return writes


# Splitting


@pytest.mark.parametrize(
    "lie",
    [{"hdr_len": 0}, {"hdr_len": 65_535}, {"csum_start": 0, "csum_offset": 0}, {"csum_start": 65_535}, {"flags": 0}],
)
def test_what_a_super_packets_virtio_net_header_says_of_its_headers_is_not_believed_but_read_there(
    lie: dict[str, int],
) -> None:
    """Its own headers say where they end, so a lie about that does no harm."""
    packet = bytes(IP(src="10.1.1.5", dst="10.1.2.7") / TCP(flags="A") / bytes(3_000))
    vnet = VnetHeader(1, TCPV4, 40, 1_000, 20, 16)
    verdict = reference.outbound(packet, small_table())
    assert isinstance(verdict, reference.Forwarded)
    with EngineRig(small_table(), offload=Offload()) as rig:
        rig.tun.send(replace(vnet, **lie).pack() + packet)
        rig.poll()
        assert rig.to_peer(PEER) == reference.expand(vnet, verdict.packet)


def test_a_tcp_header_shorter_than_one_costs_one_packet() -> None:
    packet = bytes(IP(src="10.1.1.5", dst="10.1.2.7") / TCP(dataofs=4, flags="A") / bytes(3_000))
    with EngineRig(small_table(), offload=Offload()) as rig:
        rig.tun.send(VnetHeader(1, TCPV4, 40, 1_000, 20, 16).pack() + packet)
        rig.poll()
        assert rig.drops("out") == {"bad_offload": 1}


@pytest.mark.parametrize(("gso_size", "passes"), [(65_507 - 40, True), (65_508 - 40, False)])
def test_a_segment_may_be_as_large_as_a_datagram_carries(gso_size: int, passes: bool) -> None:
    packet = bytes(IP(src="10.1.1.5", dst="10.1.2.7") / TCP(flags="A") / bytes(65_460))
    with EngineRig(small_table(), offload=Offload()) as rig:
        rig.tun.send(VnetHeader(1, TCPV4, 40, gso_size, 20, 16).pack() + packet)
        rig.poll()
        assert rig.drops("out") == ({} if passes else {"bad_offload": 1})
        assert [len(datagram) for datagram in rig.to_peer(PEER)] == ([65_500] if passes else [])


@pytest.mark.parametrize(("from_end", "passes"), [(2, True), (1, False)])
def test_a_partial_checksum_may_be_the_packets_last_two_bytes_and_not_reach_beyond(from_end: int, passes: bool) -> None:
    packet = bytes(IP(src="10.1.1.5", dst="10.1.2.7", proto=132) / bytes(12))
    with EngineRig(small_table(), offload=Offload()) as rig:
        rig.tun.send(VnetHeader(1, 0, 0, 0, 20, 12 - from_end).pack() + packet)
        rig.poll()
        assert rig.drops("out") == ({} if passes else {"bad_offload": 1})


def test_a_datagram_of_a_super_packet_whose_checksum_computes_to_zero_has_all_ones() -> None:
    packet = bytearray(bytes(IP(src="10.1.1.5", dst="10.1.2.7") / UDP() / bytes(300)))
    vnet = VnetHeader(1, UDP_L4, 28, 100, 20, 6)
    segments = reference.expand(vnet, bytes(packet))
    assert segments is not None
    packet[28 + 100 : 28 + 102] = segments[1][26:28]  # the second one's words add up to all ones now
    with EngineRig(small_table(), offload=Offload()) as rig:
        rig.tun.send(vnet.pack() + packet)
        rig.poll()
        assert rig.to_peer(PEER)[1][26:28] == b"\xff\xff"


def test_no_path_carries_more_than_a_datagram_does_whatever_its_interface_says() -> None:
    """The loopback interface has an MTU of 65,536; the kernel is asked once, and knows it from then on."""
    too_big = bytes(IP(src="10.1.1.5", dst="10.1.2.7", flags="DF") / bytes(65_508 - 20))
    with EngineRig(small_table(), offload=Offload()) as rig:
        for _ in range(3):
            rig.from_tun(too_big)
            rig.poll()
        assert rig.drops("out") == {"too_big": 3}
        assert rig.engine.counters()["system_calls"]["udp_sends"] == 1


# Joining


@pytest.mark.parametrize(("n", "size", "writes"), [(64, 100, 1), (65, 100, 2), (5, 13_099, 1), (8, 8_187, 2)])
def test_a_super_packet_has_at_most_64_segments_and_65_535_bytes(n: int, size: int, writes: int) -> None:
    """With 40 bytes of headers: 5 * 13,099 is just as much as fits, 8 * 8,187 a byte more."""
    assert len(written([tcp(bytes(size), seq=i * size) for i in range(n)])) == writes


def test_segments_with_longer_headers_are_not_joined_to_one_without_options() -> None:
    """The next segment has the right sequence number, and where the first has data it has options."""
    assert len(written([tcp(b"\1" * 100), tcp(b"\1" * 88, seq=100, options=[("NOP", None)] * 12)])) == 2
    assert len(written([tcp(b"\1" * 88, options=[("NOP", None)] * 12), tcp(b"\1" * 100, seq=88)])) == 2


@pytest.mark.parametrize("bits", [0x2000, 0x2010, 0x0010], ids=["first", "middle", "last"])
def test_nothing_overtakes_a_fragment(bits: int) -> None:
    """It may be of any flow; the segments before it and after it follow each other."""
    packets = [tcp(b"x" * 100, seq=100 * i) for i in range(4)]
    odd = reference.with_ttl(packets[0][:6] + bits.to_bytes(2, "big") + packets[0][8:], 64)
    assert [len(data) for _, data in written([*packets[:2], odd, *packets[2:]])] == [240, 140, 240]


def test_what_lies_behind_options_of_the_ip_header_is_not_taken_for_a_datagram() -> None:
    """The first four bytes of what looks like a datagram are options, so it has none of these ports."""
    packet = udp(b"x" * 50)
    odd = reference.with_ttl(b"\x46" + packet[1:], 64)
    assert [vnet for vnet, _ in written([odd, odd])] == [VnetHeader(), VnetHeader()]


@pytest.mark.parametrize("odd_at", [0, 1, 2])
def test_a_datagram_with_a_wrong_length_of_its_own_is_not_joined(odd_at: int) -> None:
    """Its checksum is right; but splitting would give it the right length, and the receiver drops the wrong one."""
    packets = [udp(b"x" * 50) for _ in range(3)]
    packets[odd_at] = summed(udp(b"x" * 50, len=40))
    assert (VnetHeader(), reference.with_ttl(packets[odd_at], 63)) in written(packets)


def test_a_datagram_without_a_checksum_whose_words_add_up_stays_without() -> None:
    first = udp(b"x" * 50)
    odd = first[:28] + first[26:28] + first[30:]  # not yet: these words change the sum
    odd = odd[:28] + b"\0\0" + odd[30:]
    odd = odd[:28] + summed(odd)[26:28] + odd[30:]
    odd = odd[:26] + b"\0\0" + odd[28:]  # no checksum, though 0 is what would be computed
    assert (VnetHeader(), reference.with_ttl(odd, 63)) in written([first, odd, first])


@pytest.mark.parametrize("offload", [Offload(), replace(Offload(), join_udp=False)], ids=["joined", "alone"])
def test_more_datagrams_than_the_write_queue_holds_are_all_written(offload: Offload) -> None:
    """The kernel joins them on the way, so one receive brings 4,096; without joining each is a write of its own."""
    n_bundles, n = 64, 64
    with EngineRig(small_table(), offload=offload) as rig:
        flow = Flow(IPv4Address("10.1.2.7"), IPv4Address("10.1.1.5"), socket.IPPROTO_UDP, 0)
        for bundle in range(n_bundles):
            packets = [flow.next(struct.pack("!HH", bundle, i)) for i in range(n)]
            controls = [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", len(packets[0])))]
            rig.peers[PEER].sendmsg([b"".join(packets)], controls, 0, (str(AGENT), rig.port))
        rig.settle()
        got: list[bytes] = []
        while rig.engine.poll():
            for vnet, data in rig.to_tun_raw():
                got += reference.expand(vnet, data) or []
        counters = rig.counters("in")
        assert counters["packets"] + counters["drops"].get("queue_full", 0) == n_bundles * n
        assert [data[28:] for data in got] == sorted(data[28:] for data in got)
        assert len(got) == counters["packets"]


def test_a_flood_of_one_byte_datagrams_costs_a_counter_each_and_few_system_calls() -> None:
    n_bundles, n = 30, 64
    with EngineRig(small_table(), offload=Offload()) as rig:
        for _ in range(n_bundles):
            controls = [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", 1))]
            rig.peers[PEER].sendmsg([b"\x45" * n], controls, 0, (str(AGENT), rig.port))
        rig.from_peer(PEER, udp(b"good"))
        rig.poll()
        assert rig.drops("in") == {"too_short": n_bundles * n}
        assert len(rig.to_tun()) == 1
        calls = rig.engine.counters()["system_calls"]
        assert (calls["tun_writes"], calls["udp_receives"]) == (1, 1)


# Answering


@pytest.mark.parametrize("kind", range(256))
def test_no_icmp_error_is_answered_and_every_other_message_is(kind: int) -> None:
    """RFC 1122 section 3.2.2; the error messages are those of RFC 792."""
    packet = bytes(IP(src="10.1.1.5", dst="10.1.9.9", proto=1) / bytes([kind, *bytes(7)]))
    answer = icmp.answer(packet, DropReason.NO_ROUTE)
    assert bool(answer) == (kind not in {3, 4, 5, 11, 12})


# Tables


def test_every_peer_is_found_by_its_address_and_no_stranger() -> None:
    """Small tables of random addresses: some collide at the hash's end and go on at its beginning."""
    chooser = random.Random(20_261_122)
    for _ in range(500):
        addresses = {IPv4Address(chooser.getrandbits(32) | 1) for _ in range(chooser.randint(1, 40))}
        routes: dict[Prefix, Address | str] = {
            IPv4Network((0x0A000000 + (i << 8), 24)): address for i, address in enumerate(addresses)
        }
        compiled = compile_table(ReferenceTable(routes))
        for address in addresses:
            assert compiled.peer_address(compiled.peer_of(int(address))) == int(address)
        strangers = {IPv4Address(chooser.getrandbits(32)) for _ in range(20)} - addresses
        assert all(compiled.peer_of(int(stranger)) == 0 for stranger in strangers)


def test_a_batch_ends_with_the_table_it_began_with_and_that_is_kept_as_long() -> None:
    """A peer that vanishes in mid-batch: the batch waits for its second packet, since its tunnel device blocks."""
    packet = bytes(IP(src="10.1.1.5", dst="10.1.2.7") / UDP())
    with EngineRig(small_table(), offload=NO_OFFLOAD) as rig:
        before = rig.engine.counters()["system_calls"]["tun_reads"]
        blocking = socket.socket(fileno=socket.dup(rig.tun_fd))
        blocking.setblocking(True)
        rig.from_tun(packet)
        poller = threading.Thread(target=rig.engine.poll)
        poller.start()
        try:
            wait_for("the first is read", lambda: rig.engine.counters()["system_calls"]["tun_reads"] == before + 1)
            for _ in range(3):
                rig.engine.publish(compile_table(ReferenceTable()))
            assert rig.engine.reclaim() == 3
            rig.from_tun(packet)  # the batch's second
        finally:
            blocking.setblocking(False)
            blocking.close()
            rig.from_tun(packet)
            poller.join()
        assert rig.engine.reclaim() == 0
        rig.poll()
        rig.from_tun(packet)
        rig.poll()
        assert len(rig.to_peer(PEER)) in (2, 3)  # the third may have come in time
        assert rig.drops("out") == {"no_route": 4 - rig.counters("out")["packets"]}
