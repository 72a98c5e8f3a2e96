"""Inner IPv6 on its way: split, joined as the kernel's GRO does, never fragmented, and by whom it is not carried."""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import replace
from ipaddress import IPv6Address
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.packet import Packet

from flannel_udp._fastpath.engine import PROBE_IDENTIFIER
from flannel_udp._fastpath.routes import PEERS_FROM
from flannel_udp.dataplane import reference
from flannel_udp.dataplane.dataplane import DSCP_INHERIT
from flannel_udp.dataplane.reference import VnetHeader
from flannel_udp.options import NO_OFFLOAD, Offload
from tests.support.engine_rig import EngineRig, compile_table6, small_table
from tests.support.refusals import Refusal, refused
from tests.support.repair import with_partial_checksum

OURS, THEIRS, PEER = "fd00:10:244:1::5", "fd00:10:244:2::7", "2001:db8::2"
TABLE = small_table(version=6)
TCPV6, UDP_L4, ECN = 4, 5, 0x80
EVERY_RUNG = [
    NO_OFFLOAD,
    Offload(),
    *(replace(Offload(), **{name.replace("-", "_"): False}) for name in Offload().names()),
]
LIMIT = 1_372


def outward(*layers: Packet | bytes, **fields: Any) -> bytes:
    """A packet from our pod to the peer's, with these behind its IPv6 header."""
    packet: Packet = IPv6(src=OURS, dst=THEIRS, **fields)
    for layer in layers:
        packet /= layer
    return bytes(packet)


def super_packet(packet: bytes, kind: int, gso_size: int) -> tuple[VnetHeader, bytes]:
    """A super-packet as the kernel hands it over: the checksum field holds the pseudo-header's sum only."""
    headers = reference.headers_of(packet)
    start, is_tcp = headers.transport_at, headers.protocol == socket.IPPROTO_TCP
    l4_len = (packet[start + 12] >> 4) * 4 if is_tcp else 8
    vnet = VnetHeader(1, kind, start + l4_len, gso_size, start, 16 if is_tcp else 6)
    return vnet, with_partial_checksum(packet)


def with_hop_limit(packet: bytes, change: int) -> bytes:
    return packet[:7] + bytes([packet[7] + change]) + packet[8:]


def is_sound(packet: bytes) -> bool:
    """Whether lengths and checksums of a packet are right, by scapy's reckoning."""
    again = IPv6(packet)
    del again.plen
    for kind in (TCP, UDP):
        if kind in again:
            del again[kind].chksum
    return bytes(again) == packet


@pytest.mark.parametrize("offload", EVERY_RUNG, ids=str)
def test_a_tcp_super_packet_leaves_as_plain_segments_on_every_rung(offload: Offload) -> None:
    whole = outward(TCP(seq=2**32 - 5000, flags="PFCA"), os.urandom(60_001), fl=0x12345, tc=0x28)
    vnet, packet = super_packet(whole, TCPV6 | ECN, 1_400)
    with EngineRig(TABLE, offload=offload) as rig:
        rig.tun.send(vnet.pack() + packet)
        rig.poll()
        segments = rig.to_peer(PEER)
        assert segments == reference.expand(vnet, with_hop_limit(packet, -1))
        assert all(map(is_sound, segments))
        assert [IPv6(segment)[TCP].flags for segment in segments] == ["CA", *["A"] * 41, "PFA"]
        assert {IPv6(segment).fl for segment in segments} == {0x12345}
        assert rig.counters("out") == {"packets": 43, "bytes": 60_001 + 43 * 60, "drops": {}}


@pytest.mark.parametrize("offload", EVERY_RUNG, ids=str)
def test_a_udp_super_packet_leaves_as_plain_datagrams_on_every_rung(offload: Offload) -> None:
    vnet, packet = super_packet(outward(UDP(), os.urandom(9_000)), UDP_L4, 200)
    with EngineRig(TABLE, offload=offload) as rig:
        rig.tun.send(vnet.pack() + packet)
        rig.poll()
        datagrams = rig.to_peer(PEER)
        assert datagrams == reference.expand(vnet, with_hop_limit(packet, -1))
        assert len(datagrams) == 45
        assert all(map(is_sound, datagrams))


def test_every_segment_has_the_extension_headers_of_its_super_packet() -> None:
    whole = outward(IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt(), TCP(flags="A"), bytes(3_000))
    vnet, packet = super_packet(whole, TCPV6, 1_000)
    with EngineRig(TABLE, offload=Offload()) as rig:
        rig.tun.send(vnet.pack() + packet)
        rig.poll()
        segments = rig.to_peer(PEER)
        assert [len(segment) for segment in segments] == [40 + 16 + 20 + 1_000] * 3
        assert all(map(is_sound, segments))


@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        (1, [TCP()]),  # TCPv4's
        (UDP_L4, [TCP()]),
        (TCPV6, [UDP()]),
        (TCPV6, [IPv6ExtHdrFragment(offset=0, m=1), TCP()]),
        (TCPV6, [IPv6ExtHdrRouting(addresses=["fd00:10:244:3::1"], segleft=1), TCP()]),  # its checksum is for another
    ],
)
def test_a_virtio_net_header_that_lies_costs_one_packet(kind: int, layers: list[Packet]) -> None:
    packet = outward(*layers, bytes(3_000))
    with EngineRig(TABLE, offload=Offload()) as rig:
        rig.tun.send(VnetHeader(1, kind, 60, 1_000, 40, 16).pack() + packet)
        rig.poll()
        assert rig.drops("out") == {"bad_offload": 1}
        assert rig.to_peer(PEER) == []


@pytest.mark.parametrize("transport", [TCP(), UDP()], ids=["TCP", "UDP"])
@pytest.mark.parametrize("extension", [[], [IPv6ExtHdrDestOpt()]], ids=["plain", "extended"])
def test_a_partial_checksum_is_completed(transport: Packet, extension: list[Packet]) -> None:
    right = outward(*extension, transport, b"odd")
    vnet, packet = super_packet(right, 0, 0)
    with EngineRig(TABLE, offload=Offload()) as rig:
        rig.tun.send(vnet.pack() + packet)
        rig.poll()
        assert rig.to_peer(PEER) == [with_hop_limit(right, -1)]


def stream(n: int, size: int) -> list[bytes]:
    """`n` full TCP segments that follow each other, as the peer sends them."""
    return [segment(1_000 + i * size, bytes([i % 251]) * size) for i in range(n)]


def segment(seq: int, payload: bytes, *extension: Packet, **fields: Any) -> bytes:
    packet: Packet = IPv6(src=THEIRS, dst=OURS, hlim=fields.pop("hlim", 33), fl=fields.pop("fl", 7), **fields)
    for header in extension:
        packet /= header
    return bytes(packet / TCP(sport=5, dport=6, seq=seq, flags="A", options=[("Timestamp", (7, 8))]) / payload)


def expanded(writes: list[tuple[VnetHeader, bytes]]) -> list[bytes]:
    packets = []
    for vnet, packet in writes:
        segments = reference.expand(vnet, packet)
        assert segments is not None
        packets += segments
    return packets


@pytest.mark.parametrize("offload", EVERY_RUNG, ids=str)
def test_a_tcp_stream_reaches_the_tun_whole_on_every_rung(offload: Offload) -> None:
    segments = stream(40, 1_380)
    with EngineRig(TABLE, offload=offload) as rig:
        rig.bundle_from_peer(PEER, segments)
        rig.poll()
        writes = rig.to_tun_raw()
        assert expanded(writes) == [with_hop_limit(each, -1) for each in segments]
        assert len(writes) == (1 if offload.join_tcp else 40)
        if offload.join_tcp:
            assert writes[0][0] == VnetHeader(1, TCPV6, 40 + 32, 1_380, 40, 16)
        assert rig.counters("in") == {"packets": 40, "bytes": sum(map(len, segments)), "drops": {}}


@pytest.mark.parametrize("offload", EVERY_RUNG, ids=str)
def test_small_udp_datagrams_of_a_flow_reach_the_tun_on_every_rung(offload: Offload) -> None:
    packets = [bytes(IPv6(src=THEIRS, dst=OURS) / UDP() / os.urandom(64)) for _ in range(60)]
    with EngineRig(TABLE, offload=offload) as rig:
        rig.bundle_from_peer(PEER, packets)
        rig.poll()
        writes = rig.to_tun_raw()
        assert expanded(writes) == [with_hop_limit(packet, -1) for packet in packets]
        assert len(writes) == (1 if offload.join_udp else 60)


ODD = {
    "other flow label": segment(11_000, bytes(1_000), fl=8),
    "other traffic class": segment(11_000, bytes(1_000), tc=8),
    "other hop limit": segment(11_000, bytes(1_000), hlim=34),
    "hop-by-hop options": segment(11_000, bytes(1_000), IPv6ExtHdrHopByHop()),
    "destination options": segment(11_000, bytes(1_000), IPv6ExtHdrDestOpt()),
    "routing header": segment(11_000, bytes(1_000), IPv6ExtHdrRouting()),
    "atomic fragment": segment(11_000, bytes(1_000), IPv6ExtHdrFragment(offset=0, m=0)),
    "first fragment": segment(11_000, bytes(1_000), IPv6ExtHdrFragment(offset=0, m=1)),
    "corrupted": segment(11_000, bytes(1_000))[:-1] + b"\x01",
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_what_the_kernels_gro_would_not_join_goes_on_alone_and_in_its_place(odd: bytes) -> None:
    before, after = stream(10, 1_000), stream(21, 1_000)[11:]
    with EngineRig(TABLE, offload=Offload()) as rig:
        for packet in [*before, odd, *after]:
            rig.from_peer(PEER, packet)
        rig.poll()
        writes = rig.to_tun_raw()
        assert (VnetHeader(), with_hop_limit(odd, -1)) in writes
        assert expanded(writes) == [with_hop_limit(packet, -1) for packet in [*before, odd, *after]]
        assert len(writes) <= 4


def test_udp_datagrams_without_a_checksum_are_not_joined() -> None:
    packets = [bytes(IPv6(src=THEIRS, dst=OURS) / UDP(chksum=0) / bytes(64)) for _ in range(5)]
    with EngineRig(TABLE, offload=Offload()) as rig:
        rig.bundle_from_peer(PEER, packets)
        rig.poll()
        assert rig.to_tun_raw() == [(VnetHeader(), with_hop_limit(packet, -1)) for packet in packets]


def test_what_is_larger_than_the_path_carries_is_never_fragmented() -> None:
    with limited_rig() as rig:
        for size in (LIMIT, LIMIT + 1, 65_000):
            rig.from_tun(outward(UDP(), bytes(size - 48)))
        rig.from_tun(outward(IPv6ExtHdrFragment(offset=10, m=1), bytes(1_424)))
        rig.poll()
        assert list(map(len, rig.to_peer(PEER))) == [LIMIT]
        assert rig.drops("out") == {"too_big": 3}


def test_super_packets_whose_segments_are_larger_are_too_big_as_a_whole() -> None:
    vnet, packet = super_packet(outward(UDP(), bytes(6_000)), UDP_L4, 1_400)
    with limited_rig() as rig:
        rig.tun.send(vnet.pack() + packet)
        rig.tun.send(replace(vnet, gso_size=1_200).pack() + packet)
        rig.poll()
        assert list(map(len, rig.to_peer(PEER))) == [1_248] * 5
        assert rig.drops("out") == {"too_big": 1}


def test_the_agents_probes_pass_and_others_echoes_do_not() -> None:
    with limited_rig() as rig:
        for identifier in (PROBE_IDENTIFIER, 1):
            rig.from_tun(outward(ICMPv6EchoRequest(id=identifier, data=bytes(1_400))))
        rig.poll()
        assert list(map(len, rig.to_peer(PEER))) == [1_448]
        assert rig.drops("out") == {"too_big": 1}


def limited_rig() -> EngineRig:
    rig = EngineRig(TABLE, offload=Offload())
    rig.engine.limit_path_mtu(PEERS_FROM, int(IPv6Address(PEER)), LIMIT)
    return rig


@pytest.mark.parametrize("dscp", [0, DSCP_INHERIT])
@pytest.mark.parametrize("traffic_class", [0, 1, 2, 3, 0xB8, 0xBB, 0xFF])
def test_the_outer_traffic_class_has_the_inner_congestion_mark_and_dscp_if_it_shall(
    traffic_class: int, dscp: int
) -> None:
    with EngineRig(TABLE, offload=Offload(), dscp=dscp) as rig:
        peer = rig.peers[PEER]
        peer.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
        rig.from_tun(outward(UDP(), tc=traffic_class))
        rig.poll()
        _, controls, _, _ = peer.recvmsg(100, 100)
        assert controls[0][2][0] == (traffic_class if dscp == DSCP_INHERIT else traffic_class & 3)


def test_an_engine_of_one_version_drops_the_other_one() -> None:
    ipv4, ipv6 = bytes(IP(src="10.1.1.5", dst="10.1.2.7") / UDP() / bytes(20)), outward(UDP())
    for table, packet, reason in ((TABLE, ipv4, "not_ipv6"), (small_table(), ipv6, "not_ipv4")):
        with EngineRig(table) as rig:
            rig.from_tun(packet)
            rig.poll()
            assert rig.drops("out") == {reason: 1}


def test_what_comes_over_ipv6_is_ipv6_although_ipv4_is_carried_beside_it() -> None:
    inner = bytes(IP(src="10.1.2.7", dst="10.1.1.5") / UDP() / bytes(20))
    with EngineRig(small_table(), beside=TABLE) as rig:
        rig.from_peer(PEER, inner)
        rig.from_peer("127.0.0.2", bytes(IPv6(src=THEIRS, dst=OURS) / UDP()))
        rig.poll()
        assert rig.drops("in") == {"not_ipv6": 1, "not_ipv4": 1}
        assert rig.to_tun() == []


def test_an_engine_joins_one_of_ipv4_that_is_alone_and_nothing_else() -> None:
    with EngineRig(small_table()) as four, EngineRig(small_table()) as other, EngineRig(TABLE) as six:
        for engine, beside in ((four, other), (four, six), (six, six)):
            with pytest.raises(ValueError, match="beside an engine of IPv4 is one of IPv6 at most"):
                engine.engine.join(beside.engine)
    with (
        EngineRig(small_table(), beside=TABLE) as both,
        EngineRig(TABLE) as six,
        pytest.raises(ValueError, match="beside an engine of IPv4 is one of IPv6 at most"),
    ):
        six.engine.join(both.engine)


def test_a_route_that_took_no_runs_is_forgotten_with_its_peer() -> None:
    with EngineRig(TABLE, offload=Offload()) as rig:
        for _ in range(2):
            rig.from_tun(outward(UDP(), b"x"))
        refused([Refusal("sendmmsg", errno.EIO)], rig.engine.poll)  # the rig sends, too
        assert not rig.engine.segments
        without = {prefix: hop for prefix, hop in TABLE.routes.items() if hop != IPv6Address(PEER)}
        rig.engine.publish(compile_table6(replace(TABLE, routes=without)))
        rig.from_tun(outward(UDP(), b"x"))
        rig.poll()
        assert rig.engine.segments
