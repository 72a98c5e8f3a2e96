"""IP-in-IP (RFC 2003) by our packet path: what the raw sockets read begins with the outer header, see `EngineRig`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP

from flannel_udp.options import NO_OFFLOAD, Offload
from tests.support.engine_rig import IPIP, EngineRig, small_table

PING = IP(src="10.1.2.7", dst="10.1.1.5", ttl=61, id=7) / ICMP(type=0) / b"abcd"
OUTER: Mapping[str, Any] = {"src": "127.0.0.2", "dst": "127.0.0.1", "proto": 4}


def ipip_rig(offload: Offload = NO_OFFLOAD) -> EngineRig:
    return EngineRig(small_table(IPIP), ["127.0.0.2", "127.0.0.3", "127.0.0.9"], offload=offload)


def test_an_outbound_packet_is_handed_to_the_kernel_as_it_is() -> None:
    packets = [bytes(IP(src="10.1.1.5", dst="10.1.2.7", ttl=1, id=number) / UDP() / b"abcd") for number in range(20)]
    with ipip_rig(Offload()) as rig:
        for packet in packets:
            rig.from_tun(packet)
        rig.poll()
        assert rig.to_peer("127.0.0.2") == packets
        assert rig.counters("out") == {"packets": 20, "bytes": 20 * 32, "drops": {}}
        assert not rig.engine.segments
        assert rig.engine.counters()["system_calls"]["udp_sends"] == 1


def test_an_inbound_packet_reaches_the_tun_without_its_outer_header() -> None:
    with ipip_rig() as rig:
        rig.from_peer("127.0.0.2", bytes(IP(**OUTER) / PING))
        rig.poll()
        assert rig.to_tun() == [bytes(PING)]


@pytest.mark.parametrize(
    ("reason", "received"),
    [
        ("bad_outer_header", b""),
        ("bad_outer_header", bytes(IP(**OUTER) / PING)[:19]),
        ("bad_outer_header", bytes(IP(**OUTER, ihl=4) / PING)),
        ("bad_outer_header", bytes(IP(**OUTER, ihl=15) / PING)[:40]),
        ("bad_outer_header", bytes(IP(**OUTER, options=b"\x01" * 4) / PING)),
        ("bad_outer_header", bytes(IP(**OUTER, options=b"\x01" * 40) / PING)),
        ("bad_outer_header", bytes(IP(**OUTER, version=6) / PING)),
        ("bad_outer_header", bytes(IP(**OUTER, len=51) / PING)),
        ("bad_outer_header", bytes(IP(**OUTER, flags="MF") / PING)),
        ("bad_outer_header", bytes(IP(**OUTER, frag=1) / PING)),
        ("bad_outer_header", bytes(IP(**{**OUTER, "proto": 41}) / PING)),
        ("too_short", bytes(IP(**OUTER))),
        ("not_ipv4", bytes(IP(**OUTER) / (b"\x60" + bytes(39)))),
        ("bad_total_len", bytes(IP(**OUTER) / bytes(PING)[:-1])),
        ("spoofed_source", bytes(IP(**OUTER) / IP(src="10.1.3.1", dst="10.1.1.5") / UDP())),
        ("not_our_subnet", bytes(IP(**OUTER) / IP(src="10.1.2.1", dst="10.1.3.1") / UDP())),
        ("congestion_lost", bytes(IP(**OUTER, tos=3) / PING)),
    ],
)
def test_what_must_not_come_in_is_dropped_for_its_reason(reason: str, received: bytes) -> None:
    with ipip_rig() as rig:
        rig.from_peer("127.0.0.2", received)
        rig.poll()
        assert rig.drops("in") == {reason: 1}
        assert rig.to_tun() == []


@pytest.mark.parametrize("n_bytes", range(81))
def test_every_length_from_0_to_80_is_one_packet_or_one_drop(n_bytes: int) -> None:
    inner = bytes(IP(src="10.1.2.7", dst="10.1.1.5", len=40) / TCP() / bytes(40))[:n_bytes]
    with ipip_rig() as rig:
        rig.from_peer("127.0.0.2", bytes(IP(**OUTER) / inner))
        rig.poll()
        assert len(rig.to_tun()) + sum(rig.drops("in").values()) == 1
        assert rig.drops("in") == ({} if n_bytes >= 40 else {"too_short" if n_bytes < 20 else "bad_total_len": 1})


def test_a_congestion_mark_on_the_outer_header_is_carried_over() -> None:
    with ipip_rig() as rig:
        rig.from_peer("127.0.0.2", bytes(IP(**OUTER, tos=3) / IP(src="10.1.2.7", dst="10.1.1.5", tos=2) / UDP()))
        rig.poll()
        assert [IP(packet).tos for packet in rig.to_tun()] == [3]


def test_our_own_packet_to_a_peer_that_comes_back_is_not_encapsulated_again() -> None:
    with ipip_rig() as rig:
        rig.from_tun(bytes(IP(src="127.0.0.1", dst="127.0.0.2", proto=4) / PING))
        rig.poll()
        assert rig.drops("out") == {"looped": 1}
