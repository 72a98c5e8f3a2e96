"""What the agent's probes found of a path: larger packets are refused or cut, and the probes themselves pass."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, UDP, IPOption_NOP, IPOption_RR, IPOption_Security
from scapy.packet import Packet

from flannel_udp._fastpath.engine import PROBE_IDENTIFIER
from flannel_udp._fastpath.routes import PEERS_FROM
from flannel_udp.dataplane.reference import VnetHeader
from flannel_udp.options import NO_OFFLOAD, Offload
from tests.support.engine_rig import EngineRig, compile_table, small_table

LIMIT = 1_372
PEER, PEER_IP = PEERS_FROM, "127.0.0.2"
OWN = "10.1.1.0"

pytestmark = pytest.mark.parametrize("offload", [NO_OFFLOAD, Offload()], ids=["one by one", "in runs"])


def limited_rig(offload: Offload, limit: int = LIMIT) -> EngineRig:
    rig = EngineRig(small_table(), offload=offload)
    rig.engine.limit_path_mtu(PEER, int(IPv4Address(PEER_IP)), limit)
    return rig


def packet(size: int, number: int = 0, dst: str = "10.1.2.7", **fields: Any) -> bytes:
    payload = bytes(i % 251 for i in range(size - 28))
    return bytes(IP(src="10.1.1.5", dst=dst, id=number, **fields) / UDP(sport=7, dport=9) / payload)


def probe(size: int, identifier: int = PROBE_IDENTIFIER) -> bytes:
    return bytes(IP(src=OWN, dst="10.1.2.0", flags="DF") / ICMP(type=8, id=identifier) / bytes(size - 28))


def reassembled(fragments: list[bytes]) -> bytes:
    """Put fragments together that came in order, each checked; return the payload."""
    payload = b""
    for number, raw in enumerate(fragments):
        ip = IP(raw)
        assert ip.frag * 8 == len(payload)
        assert ("MF" in ip.flags) == (number + 1 < len(fragments))
        assert ip.len == len(raw)
        assert right_checksum(ip)
        payload += raw[ip.ihl * 4 :]
    return payload


def right_checksum(ip: Packet) -> bool:
    again = ip.copy()
    del again.chksum
    return bool(IP(bytes(again)).chksum == ip.chksum)


def test_what_is_larger_and_may_not_be_fragmented_is_too_big(offload: Offload) -> None:
    with limited_rig(offload) as rig:
        for size in (LIMIT, LIMIT + 1, 1_472):
            rig.from_tun(packet(size, flags="DF"))
        rig.poll()
        assert list(map(len, rig.to_peer(PEER_IP))) == [LIMIT]
        assert rig.drops("out") == {"too_big": 2}


@pytest.mark.parametrize("size", [LIMIT + 1, 1_472, 4_000, 65_000])
def test_what_may_be_fragmented_arrives_in_pieces_that_fit(offload: Offload, size: int) -> None:
    with limited_rig(offload) as rig:
        rig.from_tun(packet(size, 7))
        rig.poll()
        pieces = rig.to_peer(PEER_IP)
        assert max(map(len, pieces)) <= LIMIT
        assert reassembled(pieces) == packet(size, 7)[20:]
        assert rig.drops("out") == {}


def test_a_fragment_is_cut_further_where_it_belongs(offload: Offload) -> None:
    with limited_rig(offload) as rig:
        rig.from_tun(bytes(IP(src="10.1.1.5", dst="10.1.2.7", frag=10, flags="MF") / bytes(1_448)))
        rig.poll()
        first, last = map(IP, rig.to_peer(PEER_IP))
        assert (first.frag, "MF" in first.flags) == (10, True)
        assert (last.frag, "MF" in last.flags) == (10 + (first.len - 20) // 8, True)


@pytest.mark.parametrize(
    ("eighths", "size", "is_cut"), [(8_014, 1_423, True), (8_014, 1_424, False), (8_189, 1_400, False)]
)
def test_a_fragment_that_ends_beyond_what_any_packet_has_is_not_cut(
    offload: Offload, eighths: int, size: int, is_cut: bool
) -> None:
    """The pieces' offsets would run over into the flags; and nobody can put together 65,536 bytes (RFC 791)."""
    fragment = bytes(IP(src="10.1.1.5", dst="10.1.2.7", frag=eighths) / bytes(size - 20))
    with limited_rig(offload) as rig:
        foretold = rig.engine.try_packet(fragment)[0]
        rig.from_tun(fragment)
        rig.poll()
        pieces = [(IP(piece).frag, "MF" in IP(piece).flags) for piece in rig.to_peer(PEER_IP)]
        if is_cut:
            assert pieces == [(eighths, True), (eighths + (LIMIT - 20) // 8, False)]
        else:
            assert pieces == []
            assert rig.drops("out") == {foretold: 1} == {"bad_total_len": 1}


def test_options_that_are_not_for_every_fragment_are_in_the_first_one_only(offload: Offload) -> None:
    options = [IPOption_RR(), IPOption_Security(), IPOption_NOP()]
    with limited_rig(offload) as rig:
        rig.from_tun(packet(LIMIT + 200, options=options))
        rig.poll()
        first, last = map(IP, rig.to_peer(PEER_IP))
        assert first.ihl == last.ihl
        assert [option.option for option in first.options][:3] == [7, 2, 1]
        assert {option.option for option in last.options} <= {0, 1, 2}
        assert right_checksum(last)


def test_the_agents_probes_pass_and_others_echoes_do_not(offload: Offload) -> None:
    with limited_rig(offload) as rig:
        rig.from_tun(probe(1_472))
        rig.from_tun(probe(1_472, identifier=1))
        rig.poll()
        assert list(map(len, rig.to_peer(PEER_IP))) == [1_472]
        assert rig.drops("out") == {"too_big": 1}


def test_a_limit_is_one_peers_and_ends(offload: Offload) -> None:
    with limited_rig(offload) as rig:
        rig.from_tun(packet(1_472, dst="10.1.3.7", flags="DF"))
        rig.poll()
        assert len(rig.to_peer("127.0.0.3")) == 1
        rig.engine.limit_path_mtu(PEER, int(IPv4Address(PEER_IP)), 0)
        rig.from_tun(packet(1_472, flags="DF"))
        rig.poll()
        assert len(rig.to_peer(PEER_IP)) == 1
        assert rig.drops("out") == {}


@pytest.mark.parametrize("limit", [600, 1_400])
def test_a_limit_can_be_lowered_and_raised(offload: Offload, limit: int) -> None:
    with limited_rig(offload) as rig:
        rig.engine.limit_path_mtu(PEER, int(IPv4Address(PEER_IP)), limit)
        for size in (limit, limit + 1):
            rig.from_tun(packet(size, flags="DF"))
        rig.poll()
        assert list(map(len, rig.to_peer(PEER_IP))) == [limit]


def test_a_limit_survives_tables_other_descriptors_and_news_of_the_paths(offload: Offload) -> None:
    with limited_rig(offload) as rig:
        rig.engine.publish(compile_table(small_table()))
        rig.engine.attach(rig.tun_fd, rig.udp_fd)
        rig.engine.forget_path_mtus()
        for _ in range(2):
            rig.from_tun(packet(1_472, flags="DF"))
        rig.poll()
        assert rig.drops("out") == {"too_big": 2}


def test_a_peer_that_gets_a_former_peers_index_does_not_get_its_limit(offload: Offload) -> None:
    with EngineRig(small_table(), offload=offload) as rig:
        rig.engine.limit_path_mtu(PEER, int(IPv4Address("127.0.0.9")), LIMIT)
        rig.from_tun(packet(1_472, flags="DF"))
        rig.poll()
        assert len(rig.to_peer(PEER_IP)) == 1


def test_super_packets_of_datagrams_are_cut_in_segments_and_these_in_fragments(offload: Offload) -> None:
    datagram = packet(28 + 3 * 1_400)
    header = VnetHeader(flags=1, gso_type=5, hdr_len=28, gso_size=1_400, csum_start=20, csum_offset=6)
    with limited_rig(offload) as rig:
        rig.tun.send(header.pack() + datagram)
        rig.poll()
        pieces = rig.to_peer(PEER_IP)
        assert len(pieces) == 6
        segments = [reassembled(pieces[i : i + 2]) for i in (0, 2, 4)]
        assert b"".join(segment[8:] for segment in segments) == datagram[28:]


def test_a_limit_below_what_every_host_takes_is_refused(offload: Offload) -> None:
    with EngineRig(small_table(), offload=offload) as rig, pytest.raises(ValueError, match="576"):
        rig.engine.limit_path_mtu(PEER, 0, 575)


def test_what_has_happened_with_peers_is_told_once(offload: Offload) -> None:
    with EngineRig(small_table(), offload=offload) as rig:
        rig.from_tun(packet(1_300))
        rig.from_tun(packet(100))
        rig.from_peer("127.0.0.3", bytes(IP(src="10.1.3.7", dst="10.1.1.5", flags="DF") / UDP() / b"x"))
        rig.poll()
        assert rig.engine.sample_peers(PEER, 1_000) == [
            (PEER, 2, 0, 1_300, 1_400, 0),
            (PEER + 1, 0, 1, 0, 0, 29),
        ]
        assert rig.engine.sample_peers(PEER, 1_000) == []
        rig.from_tun(packet(100))
        rig.from_tun(probe(1_472))
        rig.poll()
        assert rig.engine.sample_peers(PEER, 1_000) == [(PEER, 2, 0, 100, 1_572, 0)]
