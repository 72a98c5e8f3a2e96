"""Splitting and joining against the twin: what leaves is plain packets, right in every byte, in order."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import GRE
from scapy.packet import Packet

from flannel_udp.dataplane import reference
from flannel_udp.dataplane.dataplane import DSCP_INHERIT
from flannel_udp.dataplane.reference import Forwarded, VnetHeader
from flannel_udp.options import NO_OFFLOAD, Offload
from tests.support.effort import share_of
from tests.support.engine_rig import EngineRig, small_table
from tests.support.repair import repaired
from tests.support.traffic import ACK, Flow

UDP_SEGMENT = 103
TCPV4, UDP_L4, ECN = 1, 5, 0x80
EVERY_RUNG = [
    NO_OFFLOAD,
    Offload(),
    *(replace(Offload(), **{name.replace("-", "_"): False}) for name in Offload().names()),
]


def super_packet(packet: IP, kind: int, gso_size: int) -> tuple[VnetHeader, bytes]:
    """A super-packet as the kernel hands it over: the checksum field holds the pseudo-header's sum only."""
    data = bytearray(bytes(packet))
    ip_len = (data[0] & 15) * 4
    offset = 16 if data[9] == 6 else 6
    pseudo = data[12:20] + bytes([0, data[9]]) + (len(data) - ip_len).to_bytes(2, "big")
    data[ip_len + offset : ip_len + offset + 2] = (~reference.checksum(bytes(pseudo)) & 0xFFFF).to_bytes(2, "big")
    l4_len = (data[ip_len + 12] >> 4) * 4 if data[9] == 6 else 8
    return VnetHeader(1, kind, ip_len + l4_len, gso_size, ip_len, offset), bytes(data)


def tcp(payload: bytes, **fields: Any) -> IP:
    return IP(src="10.1.1.5", dst="10.1.2.7", id=65_530, flags="DF") / TCP(sport=1, dport=2, **fields) / payload


def on_the_wire(vnet: VnetHeader, packet: bytes) -> list[bytes]:
    """What the twin says must leave for a (super-)packet that has a route."""
    verdict = reference.outbound(packet, small_table())
    assert isinstance(verdict, Forwarded)
    segments = reference.expand(vnet, verdict.packet)
    assert segments is not None
    return segments


def is_sound(packet: bytes) -> bool:
    """Whether every checksum of a packet is right, by scapy's reckoning."""
    again = IP(packet)
    del again.chksum, again.payload.chksum
    return bytes(again) == packet


@pytest.mark.parametrize("offload", EVERY_RUNG, ids=str)
def test_a_tcp_super_packet_leaves_as_plain_segments_on_every_rung(offload: Offload) -> None:
    vnet, packet = super_packet(tcp(os.urandom(60_001), seq=2**32 - 5000, flags="PFCA"), TCPV4 | ECN, 1_420)
    with EngineRig(small_table(), offload=offload) as rig:
        rig.tun.send(vnet.pack() + packet)
        rig.poll()
        datagrams = rig.to_peer("127.0.0.2")
        assert datagrams == on_the_wire(vnet, packet)
        assert all(map(is_sound, datagrams))
        assert [IP(datagram)[TCP].flags for datagram in datagrams] == ["CA", *["A"] * 41, "PFA"]
        assert rig.counters("out") == {"packets": 43, "bytes": 60_001 + 43 * 40, "drops": {}}
        sends = rig.engine.counters()["system_calls"]["udp_sends"]
        assert sends == 1


@pytest.mark.parametrize("offload", EVERY_RUNG, ids=str)
def test_a_udp_super_packet_leaves_as_plain_datagrams_on_every_rung(offload: Offload) -> None:
    vnet, packet = super_packet(IP(src="10.1.1.5", dst="10.1.3.7") / UDP() / os.urandom(9_000), UDP_L4, 200)
    with EngineRig(small_table(), offload=offload) as rig:
        rig.tun.send(vnet.pack() + packet)
        rig.poll()
        assert rig.to_peer("127.0.0.3") == on_the_wire(vnet, packet)


def test_64_kib_of_tcp_is_more_than_one_send_may_carry_and_leaves_in_two_messages_of_one_call() -> None:
    vnet, packet = super_packet(tcp(os.urandom(65_400), options=[("Timestamp", (1, 2))]), TCPV4, 1_420)
    with EngineRig(small_table(), offload=Offload()) as rig:
        rig.tun.send(vnet.pack() + packet)
        rig.poll()
        assert rig.to_peer("127.0.0.2") == on_the_wire(vnet, packet)
        assert rig.engine.counters()["system_calls"]["udp_sends"] == 1


@pytest.mark.parametrize("packet", [tcp(b"odd"), IP(src="10.1.1.5", dst="10.1.2.7") / UDP() / b"even"])
def test_a_partial_checksum_is_completed(packet: IP) -> None:
    vnet, data = super_packet(packet, 0, 0)
    with EngineRig(small_table(), offload=Offload()) as rig:
        rig.tun.send(vnet.pack() + data)
        rig.poll()
        (datagram,) = rig.to_peer("127.0.0.2")
        assert is_sound(datagram)


@pytest.mark.parametrize(
    "outer", [UDP(dport=4789), GRE(), IP(src="10.2.0.1", dst="10.2.0.2")], ids=["UDP", "GRE", "IP"]
)
@pytest.mark.parametrize(("inner", "offset", "completed"), [(TCP(), 16, 0), (UDP(), 6, 0xFFFF)], ids=["TCP", "UDP"])
def test_a_checksum_inside_another_tunnel_that_computes_to_zero_is_that_of_its_own_header(
    outer: Packet, inner: Packet, offset: int, completed: int
) -> None:
    before = bytes(IP(src="10.1.1.5", dst="10.1.2.7") / outer)
    nested = bytearray(bytes(inner))
    nested[offset : offset + 2] = b"\0\0"
    nested[offset : offset + 2] = reference.checksum(bytes(nested)).to_bytes(
        2, "big"
    )  # a seed that all the rest makes zero
    packet = bytes(IP(src="10.1.1.5", dst="10.1.2.7") / outer / bytes(nested))
    vnet = VnetHeader(flags=1, csum_start=len(before), csum_offset=offset)
    with EngineRig(small_table(), offload=Offload()) as rig:
        rig.tun.send(vnet.pack() + packet)
        rig.poll()
        (datagram,) = rig.to_peer("127.0.0.2")
        assert int.from_bytes(datagram[len(before) + offset :][:2], "big") == completed
        assert [datagram] == on_the_wire(vnet, packet)


def test_a_udp_checksum_that_computes_to_zero_goes_out_as_all_ones() -> None:
    packet = IP(src="10.1.1.5", dst="10.1.2.7", id=1) / UDP(sport=1, dport=2) / b"\0\0"
    before = int.from_bytes(bytes(packet)[26:28], "big")
    packet[UDP].payload.load = before.to_bytes(2, "big")  # now the words add up to all ones
    vnet, data = super_packet(packet, 0, 0)
    with EngineRig(small_table(), offload=Offload()) as rig:
        rig.tun.send(vnet.pack() + data)
        rig.poll()
        assert rig.to_peer("127.0.0.2")[0][26:28] == b"\xff\xff"


@pytest.mark.parametrize(
    "change",
    [
        {"gso_size": 0},
        {"gso_size": 65_500},
        {"gso_type": 4},
        {"gso_type": UDP_L4},
        {"gso_type": 0, "csum_start": 60_000},
        {"gso_type": 0, "csum_start": 0},
        {"gso_type": 0, "csum_start": 65_535, "csum_offset": 65_535},
    ],
)
def test_a_virtio_net_header_that_lies_costs_one_packet(change: dict[str, int]) -> None:
    vnet, packet = super_packet(tcp(bytes(3_000)), TCPV4, 1_000)
    with EngineRig(small_table(), offload=Offload()) as rig:
        rig.tun.send(replace(vnet, **change).pack() + packet)
        rig.tun.send(vnet.pack() + packet)
        rig.poll()
        assert rig.drops("out") == {"bad_offload": 1}
        assert len(rig.to_peer("127.0.0.2")) == 3


def test_tcp_options_cut_short_cost_one_packet() -> None:
    vnet, packet = super_packet(IP(src="10.1.1.5", dst="10.1.2.7") / TCP(dataofs=15) / bytes(39), TCPV4, 10)
    with EngineRig(small_table(), offload=Offload()) as rig:
        rig.tun.send(vnet.pack() + packet)
        rig.poll()
        assert rig.drops("out") == {"bad_offload": 1}


def test_consecutive_packets_for_one_peer_leave_in_one_message_and_in_order() -> None:
    with EngineRig(small_table(), offload=Offload()) as rig:
        sent: dict[str, list[int]] = {"127.0.0.2": [], "127.0.0.3": []}
        for number in range(300):
            peer = random.choice(["2", "2", "2", "3"])
            size = random.choice([100, 100, 100, 60, 200])
            rig.from_tun(bytes(IP(src="10.1.1.5", dst=f"10.1.{peer}.7", id=number) / UDP() / bytes(size)))
            sent[f"127.0.0.{peer}"].append(number)
        rig.poll()
        got = {address: [IP(datagram).id for datagram in rig.to_peer(address)] for address in sent}
        assert got == sent


def stream(n: int, size: int, source: str = "10.1.2.7", flags: str = "A", **fields: Any) -> list[bytes]:
    """`n` full TCP segments that follow each other."""
    tcp_header = TCP(sport=5, dport=6, flags=flags, options=[("Timestamp", (7, 8))], **fields)
    first = bytes(IP(src=source, dst="10.1.1.5", flags="DF", ttl=33) / tcp_header)
    segments = []
    for i in range(n):
        sequence = ((1000 + i * size) % 2**32).to_bytes(4, "big")
        segment = first[:4] + i.to_bytes(2, "big") + first[6:24] + sequence + first[28:] + bytes([i % 251]) * size
        segments.append(repaired(segment, transport_too=True))
    return segments


def lowered(packets: Iterable[bytes]) -> list[bytes]:
    """Packets as they come out of the tunnel: TTL one lower."""
    return [reference.with_ttl(packet, packet[8] - 1) for packet in packets]


def expanded(writes: list[tuple[VnetHeader, bytes]]) -> list[bytes]:
    packets = []
    for vnet, packet in writes:
        segments = reference.expand(vnet, packet)
        assert segments is not None
        packets += segments
    return packets


@pytest.mark.parametrize("offload", EVERY_RUNG, ids=str)
def test_a_tcp_stream_reaches_the_tun_whole_on_every_rung(offload: Offload) -> None:
    segments = stream(40, 1_400)
    with EngineRig(small_table(), offload=offload) as rig:
        rig.bundle_from_peer("127.0.0.2", segments)
        rig.poll()
        writes = rig.to_tun_raw()
        assert expanded(writes) == lowered(segments)
        assert len(writes) == (1 if offload.join_tcp else 40)
        assert rig.counters("in") == {"packets": 40, "bytes": sum(map(len, segments)), "drops": {}}
        assert rig.engine.counters()["system_calls"]["udp_receives"] <= (2 if offload.udp_gro else 4)


@pytest.mark.parametrize("offload", EVERY_RUNG, ids=str)
def test_small_udp_datagrams_of_a_flow_reach_the_tun_on_every_rung(offload: Offload) -> None:
    packets = [bytes(IP(src="10.1.3.7", dst="10.1.1.5", id=i) / UDP() / os.urandom(64)) for i in range(60)]
    with EngineRig(small_table(), offload=offload) as rig:
        rig.bundle_from_peer("127.0.0.3", packets)
        rig.poll()
        writes = rig.to_tun_raw()
        assert expanded(writes) == lowered(packets)
        assert len(writes) == (1 if offload.join_udp else 60)


def test_flows_that_differ_in_their_pods_addresses_only_are_joined_side_by_side() -> None:
    with EngineRig(small_table(), offload=Offload()) as rig:
        flows = [stream(8, 100, source=f"10.1.2.{host}") for host in range(7, 12)]
        rig.bundle_from_peer("127.0.0.2", [packet for row in zip(*flows, strict=True) for packet in row])
        rig.poll()
        assert len(rig.to_tun_raw()) == len(flows)


def test_a_super_packet_never_has_more_than_64_segments_nor_65535_bytes() -> None:
    with EngineRig(small_table(), offload=Offload()) as rig:
        for size, n in ((1_400, 100), (100, 200)):
            segments = stream(n, size)
            for start in range(0, n, 40):
                rig.bundle_from_peer("127.0.0.2", segments[start : start + 40])
            rig.poll()
            writes = rig.to_tun_raw()
            assert expanded(writes) == lowered(segments)
            assert max(len(packet) for _, packet in writes) <= 65_535
            assert len(writes) <= 5


def test_more_packets_than_a_batch_holds_are_all_written() -> None:
    segments = stream(2_500, 600)
    with EngineRig(small_table(), offload=Offload()) as rig:
        for start in range(0, len(segments), 50):
            rig.bundle_from_peer("127.0.0.2", segments[start : start + 50])
        rig.poll()
        assert expanded(rig.to_tun_raw()) == lowered(segments)


def breakers() -> dict[str, bytes]:
    """One odd packet of the stream's flow each: none of them may be joined or overtaken."""
    base: dict[str, Any] = {"sport": 5, "dport": 6, "options": [("Timestamp", (7, 8))]}
    ip = IP(src="10.1.2.7", dst="10.1.1.5", flags="DF", ttl=33)
    corrupted = bytearray(stream(11, 1_000)[10])
    corrupted[-1] ^= 1
    return {
        "SYN": bytes(ip / TCP(flags="S", seq=11_000, **base)),
        "FIN": bytes(ip / TCP(flags="FA", seq=11_000, **base) / bytes(1_000)),
        "RST": bytes(ip / TCP(flags="RA", seq=11_000, **base)),
        "URG": bytes(ip / TCP(flags="UA", seq=11_000, **base) / bytes(1_000)),
        "ECE": bytes(ip / TCP(flags="EA", seq=11_000, **base) / bytes(1_000)),
        "CWR": bytes(ip / TCP(flags="CA", seq=11_000, **base) / bytes(1_000)),
        "pure ACK": bytes(ip / TCP(flags="A", seq=11_000, **base)),
        "out of order": bytes(ip / TCP(flags="A", seq=12_000, **base) / bytes(1_000)),
        "other ACK number": bytes(ip / TCP(flags="A", seq=11_000, ack=1, **base) / bytes(1_000)),
        "other window": bytes(ip / TCP(flags="A", seq=11_000, window=9, **base) / bytes(1_000)),
        "other urgent pointer": bytes(ip / TCP(flags="A", seq=11_000, urgptr=1, **base) / bytes(1_000)),
        "other timestamp": bytes(
            ip / TCP(flags="A", seq=11_000, sport=5, dport=6, options=[("Timestamp", (7, 9))]) / bytes(1_000)
        ),
        "larger": bytes(ip / TCP(flags="A", seq=11_000, **base) / bytes(1_001)),
        "other TTL": bytes(IP(src="10.1.2.7", dst="10.1.1.5", flags="DF", ttl=34) / TCP(flags="A", seq=11_000, **base)),
        "other TOS": bytes(
            IP(src="10.1.2.7", dst="10.1.1.5", flags="DF", ttl=33, tos=8) / TCP(flags="A", seq=11_000, **base) / b"x"
        ),
        "IP options": bytes(
            IP(src="10.1.2.7", dst="10.1.1.5", flags="DF", ttl=33, options=b"\x01\x01\x01\x00")
            / TCP(flags="A", seq=11_000, **base)
            / bytes(1_000)
        ),
        "fragment": bytes(
            IP(src="10.1.2.7", dst="10.1.1.5", flags="MF", ttl=33) / TCP(flags="A", seq=11_000, **base) / bytes(1_000)
        ),
        "bad checksum": bytes(corrupted),
        "short header": bytes(ip / TCP(flags="A", seq=11_000, dataofs=4, sport=5, dport=6) / bytes(1_000)),
        "header beyond the packet": bytes(ip / TCP(flags="A", seq=11_000, dataofs=15, sport=5, dport=6)),
        "ICMP": bytes(ip / ICMP()),
    }


@pytest.mark.parametrize("name", breakers())
def test_an_odd_packet_goes_on_alone_as_it_came_and_in_its_place(name: str) -> None:
    odd = breakers()[name]
    before, after = stream(10, 1_000), stream(21, 1_000)[11:]
    with EngineRig(small_table(), offload=Offload()) as rig:
        for packet in [*before, odd, *after]:
            rig.from_peer("127.0.0.2", packet)
        rig.poll()
        writes = rig.to_tun_raw()
        alone = lowered([odd])[0]
        assert (VnetHeader(), alone) in writes
        got = expanded(writes)
        if name == "ICMP":  # another flow, which may be overtaken
            got.remove(alone)
            assert got == lowered([*before, *after])
        else:
            assert got == lowered([*before, odd, *after])
        assert len(writes) <= 4


@pytest.mark.parametrize(
    ("flags", "reserved", "n_writes"), [("A", 1, 1), ("EA", 0, 1), ("EA", 1, 1), ("CA", 0, 10), ("CEA", 0, 10)]
)
def test_segments_with_the_same_ecn_flags_are_joined_but_never_with_cwr(
    flags: str, reserved: int, n_writes: int
) -> None:
    """As the kernel's GRO has it: ECE and AE (the last of the reserved bits) on all, CWR on each for itself."""
    segments = stream(10, 500, flags=flags, reserved=reserved)
    with EngineRig(small_table(), offload=Offload()) as rig:
        rig.bundle_from_peer("127.0.0.2", segments)
        rig.poll()
        writes = rig.to_tun_raw()
        assert expanded(writes) == lowered(segments)
        assert len(writes) == n_writes


def test_push_ends_a_super_packet_and_stays_on_its_last_segment() -> None:
    segments = stream(20, 500)
    pushed = IP(segments[9])
    pushed[TCP].flags = "PA"
    del pushed[TCP].chksum
    segments[9] = bytes(pushed)
    with EngineRig(small_table(), offload=Offload()) as rig:
        for segment in segments:
            rig.from_peer("127.0.0.2", segment)
        rig.poll()
        writes = rig.to_tun_raw()
        assert expanded(writes) == lowered(segments)
        assert len(writes) == 2


def test_a_corrupted_first_segment_is_never_laundered() -> None:
    segments = stream(5, 500)
    segments[0] = segments[0][:-1] + bytes([segments[0][-1] ^ 0x10])
    with EngineRig(small_table(), offload=Offload()) as rig:
        rig.bundle_from_peer("127.0.0.2", segments)
        rig.poll()
        writes = rig.to_tun_raw()
        assert writes[0] == (VnetHeader(), lowered(segments)[0])
        assert expanded(writes) == lowered(segments)


def test_udp_datagrams_without_a_checksum_are_not_joined() -> None:
    packets = [bytes(IP(src="10.1.3.7", dst="10.1.1.5", id=i) / UDP(chksum=0) / bytes(64)) for i in range(5)]
    with EngineRig(small_table(), offload=Offload()) as rig:
        rig.bundle_from_peer("127.0.0.3", packets)
        rig.poll()
        assert rig.to_tun_raw() == [(VnetHeader(), packet) for packet in lowered(packets)]


def test_a_flow_that_comes_from_two_peers_is_not_joined_across_them() -> None:
    outside = stream(4, 500, source="192.0.2.99")
    with EngineRig(small_table(), offload=Offload()) as rig:
        for i, segment in enumerate(outside):
            rig.from_peer(f"127.0.0.{2 + i // 2}", segment)
        rig.poll()
        writes = rig.to_tun_raw()
        assert sorted(expanded(writes)) == sorted(lowered(outside))
        assert len(writes) == 2


@st.composite
def traffic(draw: st.DrawFn) -> list[bytes]:
    """Interleaved flows of TCP and UDP with everything that may break a run now and then."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    to = IPv4Address("10.1.1.5")
    flows = [Flow(IPv4Address(f"10.1.2.{i}"), to, kind, 2**32 - 300) for kind in (6, 6, 17) for i in range(3)]
    packets = []
    for _ in range(draw(st.integers(1, 200))):
        flow = rng.choice(flows)
        flow.dont_fragment = rng.random() < 0.5
        begins = flow.sequence
        flags = rng.choice([ACK] * 20 + [ACK | 8, ACK | 1, 2])  # now and then PSH, FIN, or SYN alone
        payload = rng.randbytes(rng.choice([100, 100, 100, 100, 50, 101]))
        packet = flow.next(payload, flags, ttl=rng.choice([9] * 20 + [8]), tos=rng.choice([0] * 20 + [2]))
        if rng.random() < 0.05:
            flow.sequence = begins
        if rng.random() < 0.02:
            place = rng.randrange(20, len(packet))
            packet = packet[:place] + bytes([packet[place] ^ 1 << rng.randrange(8)]) + packet[place + 1 :]
        packets.append(packet)
    return packets


def by_flow(packets: list[bytes]) -> dict[bytes, list[bytes]]:
    """Packets by flow, in order. The id of a packet with DF means nothing (RFC 6864 section 4.1) and may change."""
    flows: dict[bytes, list[bytes]] = {}
    for packet in packets:
        plain = packet[:4] + b"\0\0" + packet[6:10] + b"\0\0" + packet[12:] if packet[6] & 0x40 else packet
        flows.setdefault(packet[9:10] + packet[12:24], []).append(plain)
    return flows


@given(traffic())
@settings(max_examples=share_of(150))
def test_joining_changes_no_packet_and_no_flows_order(packets: list[bytes]) -> None:
    with EngineRig(small_table(), offload=Offload()) as rig:
        for packet in packets:
            rig.from_peer("127.0.0.2", packet)
        rig.poll()
        assert by_flow(expanded(rig.to_tun_raw())) == by_flow(lowered(packets))


@pytest.mark.parametrize("outer", range(4))
@pytest.mark.parametrize("inner", range(4))
def test_congestion_marks_cross_the_tunnel_as_rfc_6040_says(inner: int, outer: int) -> None:
    # RFC 6040 figure 4, by inner (rows) and outer (columns) field: Not-ECT 0, ECT(1) 1, ECT(0) 2, CE 3
    table: list[list[int | None]] = [[0, 0, 0, None], [1, 1, 1, 3], [2, 1, 2, 3], [3, 3, 3, 3]]
    expected = table[inner][outer]
    with EngineRig(small_table(), offload=Offload()) as rig:
        rig.peers["127.0.0.2"].setsockopt(socket.IPPROTO_IP, socket.IP_TOS, outer)
        rig.from_peer("127.0.0.2", bytes(IP(src="10.1.2.1", dst="10.1.1.5", tos=0x20 | inner) / UDP()))
        rig.poll()
        if expected is None:
            assert rig.drops("in") == {"congestion_lost": 1}
        else:
            (packet,) = rig.to_tun()
            assert packet[1] == 0x20 | expected
            assert reference.checksum(packet[:20]) == 0


@pytest.mark.parametrize("tos", range(256))
def test_with_dscp_inherit_the_outer_tos_is_the_inner_one(tos: int) -> None:
    with EngineRig(small_table(), offload=Offload(), dscp=DSCP_INHERIT) as rig:
        peer = rig.peers["127.0.0.2"]
        peer.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        rig.from_tun(bytes(IP(src="10.1.1.5", dst="10.1.2.1", tos=tos) / UDP()))
        rig.poll()
        _, controls, _, _ = peer.recvmsg(100, 100)
        assert controls[0][2][0] == tos


def test_before_it_is_told_otherwise_a_table_has_no_peers() -> None:
    with EngineRig(reference.ReferenceTable(), offload=Offload()) as rig:
        rig.bundle_from_peer("127.0.0.2", stream(3, 100))
        rig.poll()
        assert rig.drops("in") == {"unknown_peer": 3}
        assert IPv4Address("127.0.0.2") not in rig.peers
