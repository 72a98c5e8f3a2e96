"""VXLAN (RFC 7348) by our packet path: golden packets, and what is not let in."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from scapy.layers import vxlan as scapy_vxlan
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from flannel_udp.dataplane.encapsulation import Encapsulation
from flannel_udp.options import NO_OFFLOAD, Offload
from tests.support.engine_rig import VXLAN, EngineRig, compile_table, small_table

OURS, THEIRS, OTHERS = "8e:64:7c:e7:c9:01", "8e:64:7c:e7:c9:02", "8e:64:7c:e7:c9:03"
PING = IP(src="10.1.2.7", dst="10.1.1.5", ttl=61, id=7) / ICMP(type=0) / b"abcd"
HEADING = bytes.fromhex("08000000 00000100 8e647ce7c902 8e647ce7c901 0800")


def vxlan_rig(source_check: str = "strict", offload: Offload = NO_OFFLOAD) -> EngineRig:
    return EngineRig(
        small_table(VXLAN), ["127.0.0.2", "127.0.0.3", "127.0.0.9"], source_check=source_check, offload=offload
    )


def framed(inner: Packet | bytes, src: str = THEIRS, dst: str = OURS, vni: int = 1) -> bytes:
    return bytes(
        scapy_vxlan.VXLAN(vni=vni, flags="Instance") / Ether(src=src, dst=dst, type=0x0800) / Raw(bytes(inner))
    )


def test_an_outbound_packet_stands_behind_a_vxlan_and_an_ethernet_header_as_it_is() -> None:
    packet = bytes(IP(src="10.1.1.5", dst="10.1.2.7", ttl=64, id=1) / ICMP() / b"abcd")
    with vxlan_rig() as rig:
        rig.from_tun(packet)
        rig.poll()
        (datagram,) = rig.to_peer("127.0.0.2")
        assert datagram == HEADING + packet
        assert rig.counters("out") == {"packets": 1, "bytes": len(packet), "drops": {}}
    seen = scapy_vxlan.VXLAN(datagram)
    assert (seen.vni, int(seen.flags), seen[Ether].src, seen[Ether].dst) == (1, 0x08, OURS, THEIRS)
    assert seen[IP].ttl == 64  # a network device is no hop


def test_an_inbound_packet_reaches_the_tun_as_it_is() -> None:
    with vxlan_rig() as rig:
        rig.from_peer("127.0.0.2", framed(PING))
        rig.poll()
        assert rig.to_tun() == [bytes(PING)]
        assert rig.counters("in") == {"packets": 1, "bytes": len(PING), "drops": {}}
        assert rig.engine.peer_counters(2) == (0, 0, 1, len(PING), 0)


def test_a_packet_with_the_last_ttl_passes_both_ways() -> None:
    with vxlan_rig() as rig:
        last_out = bytes(IP(src="10.1.1.0", dst="10.1.2.0", ttl=1) / UDP())
        last_in = bytes(IP(src="10.1.2.0", dst="10.1.1.0", ttl=1) / UDP())
        rig.from_tun(last_out)
        rig.from_peer("127.0.0.2", framed(last_in))
        rig.poll()
        assert rig.to_peer("127.0.0.2") == [HEADING + last_out]
        assert rig.to_tun() == [last_in]


def test_each_peer_gets_its_own_mac_and_runs_are_cut_where_the_peer_changes() -> None:
    with vxlan_rig(offload=Offload()) as rig:
        for number in range(30):
            rig.from_tun(bytes(IP(src="10.1.1.5", dst=f"10.1.{2 + number // 10 % 2}.7", id=number) / UDP() / bytes(64)))
        rig.poll()
        for last, address, mac in ((2, "127.0.0.2", THEIRS), (3, "127.0.0.3", OTHERS)):
            got = [scapy_vxlan.VXLAN(datagram) for datagram in rig.to_peer(address)]
            assert {each[Ether].dst for each in got} == {mac}
            assert [each[IP].id for each in got] == [n for n in range(30) if 2 + n // 10 % 2 == last]
        assert rig.engine.counters()["system_calls"]["udp_sends"] == 1
        assert rig.counters("out")["bytes"] == 30 * 92
        assert rig.engine.peer_counters(2)[:2] == (20, 20 * 92)
        assert [row[3] for row in rig.engine.sample_peers(2, 2)] == [92, 92]  # the longest, without the heading


@pytest.mark.parametrize(
    ("reason", "datagram"),
    [
        ("bad_vxlan_header", framed(PING).replace(b"\x08", b"\x00", 1)),
        ("bad_vxlan_header", framed(PING).replace(b"\x08", b"\xf7", 1)),
        ("other_vni", framed(PING, vni=2)),
        ("other_vni", framed(PING, vni=0)),
        ("other_vni", framed(PING, vni=0x010001)),
        ("others_mac", framed(PING, dst=OTHERS)),
        ("others_mac", framed(PING, dst="ff:ff:ff:ff:ff:ff")),
        ("spoofed_mac", framed(PING, src=OTHERS)),
        ("spoofed_mac", framed(PING, src=OURS)),
        (
            "not_ipv4_frame",
            bytes(scapy_vxlan.VXLAN(vni=1) / Ether(src=THEIRS, dst="ff:ff:ff:ff:ff:ff") / ARP(pdst="10.1.1.0")),
        ),
        ("not_ipv4_frame", bytes(scapy_vxlan.VXLAN(vni=1) / Ether(src=THEIRS, dst=OURS) / IPv6() / UDP())),
        ("not_ipv4_frame", bytes(scapy_vxlan.VXLAN(vni=1) / Ether(src=THEIRS, dst=OURS) / Dot1Q(vlan=5) / PING)),
        ("not_ipv4", framed(IPv6() / UDP())),  # of type IPv4
        ("spoofed_source", framed(IP(src="10.1.3.1", dst="10.1.1.5") / UDP())),
        ("not_our_subnet", framed(IP(src="10.1.2.1", dst="10.1.3.5") / UDP())),
        ("bad_header_checksum", framed(IP(src="10.1.2.1", dst="10.1.1.5", chksum=0xFFFF) / UDP())),
        ("bad_total_len", framed(bytes(PING)[:-1])),
        ("too_short", framed(b"")),
        ("too_short", framed(bytes(PING)[:19])),
    ],
)
def test_what_must_not_come_in_is_dropped_for_its_reason(reason: str, datagram: bytes) -> None:
    with vxlan_rig() as rig:
        rig.from_peer("127.0.0.2", datagram)
        rig.poll()
        assert rig.drops("in") == {reason: 1}
        assert rig.to_tun() == []


def test_reserved_bits_are_ignored() -> None:
    """RFC 7348 section 5; one of them is the group policy's, which a kernel peer with GBP sets."""
    datagram = bytearray(framed(PING))
    datagram[0], datagram[1:4], datagram[7] = 0xFF, b"\x08\xff\xff", 0xFF
    with vxlan_rig() as rig:
        rig.from_peer("127.0.0.2", bytes(datagram))
        rig.poll()
        assert rig.to_tun() == [bytes(PING)]


def test_padding_behind_a_short_packet_is_cut() -> None:
    with vxlan_rig() as rig:
        rig.from_peer("127.0.0.2", framed(bytes(PING) + bytes(14)))
        rig.poll()
        assert rig.to_tun() == [bytes(PING)]


@pytest.mark.parametrize("n_bytes", range(101))
def test_every_length_from_0_to_100_is_one_packet_or_one_drop(n_bytes: int) -> None:
    whole = framed(IP(src="10.1.2.7", dst="10.1.1.5", len=60) / TCP() / bytes(20)) + bytes(60)
    with vxlan_rig(offload=Offload()) as rig:
        rig.from_peer("127.0.0.2", whole[:n_bytes])
        rig.poll()
        assert len(rig.to_tun()) + sum(rig.drops("in").values()) == 1
        expected = "bad_vxlan_header" if n_bytes < 22 else "too_short" if n_bytes < 42 else "bad_total_len"
        assert rig.drops("in") == ({expected: 1} if n_bytes < 82 else {})


def test_a_bundle_holds_datagrams_one_size_and_each_is_judged_alone() -> None:
    good, wrong_vni = framed(PING), framed(PING, vni=9)
    with vxlan_rig(offload=Offload()) as rig:
        rig.bundle_from_peer("127.0.0.2", [good, wrong_vni, good, good[: len(good) - 7]])
        rig.poll()
        assert rig.to_tun() == [bytes(PING)] * 2
        assert rig.drops("in") == {"other_vni": 1, "bad_total_len": 1}
        assert rig.engine.counters()["system_calls"]["udp_receives"] <= 2


@pytest.mark.parametrize(
    ("source_check", "sender", "mac", "reason"),
    [
        ("strict", "127.0.0.2", OTHERS, "spoofed_mac"),
        ("strict", "127.0.0.9", THEIRS, "unknown_peer"),
        ("strict", "127.0.0.3", THEIRS, "spoofed_source"),
        ("loose", "127.0.0.3", THEIRS, "spoofed_mac"),
        ("loose", "127.0.0.3", OTHERS, None),
        ("off", "127.0.0.9", "02:00:00:00:00:09", None),
    ],
)
def test_the_sender_is_told_by_address_and_mac(source_check: str, sender: str, mac: str, reason: str | None) -> None:
    with vxlan_rig(source_check) as rig:
        rig.from_peer(sender, framed(PING, src=mac))
        rig.poll()
        assert rig.drops("in") == ({reason: 1} if reason else {})
        assert len(rig.to_tun()) == (reason is None)


def test_a_peer_that_got_another_mac_is_sent_to_at_that_one() -> None:
    table = small_table(VXLAN)
    with vxlan_rig() as rig:
        moved = replace(table, macs={**table.macs, IPv4Address("127.0.0.2"): 0x020000000007})
        rig.engine.publish(compile_table(moved))
        rig.from_tun(bytes(IP(src="10.1.1.5", dst="10.1.2.7") / UDP()))
        rig.from_peer("127.0.0.2", framed(PING))
        rig.poll()
        assert scapy_vxlan.VXLAN(rig.to_peer("127.0.0.2")[0])[Ether].dst == "02:00:00:00:00:07"
        assert rig.drops("in") == {"spoofed_mac": 1}


def test_what_was_dropped_is_told_by_its_inner_addresses() -> None:
    with vxlan_rig() as rig:
        rig.from_peer("127.0.0.2", framed(PING, vni=2))
        rig.poll()
        (row,) = rig.engine.drop_samples()
        assert (row[1], *row[6:10]) == ("other_vni", bytes((10, 1, 2, 7)), bytes((10, 1, 1, 5)), 1, len(PING))


@pytest.mark.parametrize(
    ("encapsulation", "vnet_bytes", "message"),
    [
        (Encapsulation("vxlan", 0, 1), 10, "vni"),
        (Encapsulation("vxlan", 1 << 24, 1), 10, "vni"),
        (Encapsulation("vxlan", 1, 0), 10, "own_mac"),
        (Encapsulation("vxlan", 1, 1 << 48), 10, "own_mac"),
        (Encapsulation("geneve"), 10, "udp, vxlan, ipip"),
        (VXLAN, 0, "virtio"),
    ],
)
def test_an_engine_that_could_not_work_is_not_made(encapsulation: Encapsulation, vnet_bytes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngineRig(replace(small_table(VXLAN), encapsulation=encapsulation), vnet_bytes=vnet_bytes)


def test_a_table_without_macs_is_not_put_in_force() -> None:
    with vxlan_rig() as rig, pytest.raises(ValueError, match="has MACs"):
        rig.engine.publish(compile_table(small_table()))
