"""Golden packets: one packet of each kind through the engine, every byte and the counter checked."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.packet import Raw

from flannel_udp._fastpath.drops import SENTENCES, DropReason
from flannel_udp.dataplane.reference import ReferenceTable
from flannel_udp.netconf.addresses import is_unicast
from tests.support.engine_rig import EngineRig, small_table


@pytest.fixture(params=[0, 10], ids=["plain TUN", "TUN with virtio-net header"])
def rig(request: pytest.FixtureRequest) -> Iterator[EngineRig]:
    with EngineRig(small_table(), vnet_bytes=request.param) as rig:
        yield rig


def hexed(text: str) -> bytes:
    return bytes.fromhex("".join(line.split("#")[0] for line in text.splitlines()))


PING_OUT = hexed("""
    45 00 00 20   # version 4, 5 words; TOS 0; total length 32
    12 34 40 00   # id; don't fragment
    40 01 11 9c   # TTL 64, ICMP, checksum
    0a 01 01 05   # 10.1.1.5
    0a 01 02 07   # 10.1.2.7
    08 00 33 37 00 01 00 01  61 62 63 64
""")
PING_ON_THE_WIRE = PING_OUT[:8] + hexed("3f 01 12 9c") + PING_OUT[12:]  # TTL 63, and the checksum that goes with it


def test_an_outbound_packet_is_the_whole_datagram_with_its_ttl_one_lower(rig: EngineRig) -> None:
    rig.from_tun(PING_OUT)
    assert rig.poll() == 1
    assert rig.to_peer("127.0.0.2") == [PING_ON_THE_WIRE]
    assert rig.to_peer("127.0.0.3") == []
    assert rig.counters("out") == {"packets": 1, "bytes": 32, "drops": {}}


def test_an_inbound_packet_reaches_the_tun_with_its_ttl_one_lower(rig: EngineRig) -> None:
    reply = bytes(IP(src="10.1.2.7", dst="10.1.1.5", ttl=61, id=7) / ICMP(type=0) / b"abcd")
    rig.from_peer("127.0.0.2", reply)
    rig.poll()
    assert rig.to_tun() == [bytes(IP(src="10.1.2.7", dst="10.1.1.5", ttl=60, id=7) / ICMP(type=0) / b"abcd")]
    assert rig.counters("in") == {"packets": 1, "bytes": len(reply), "drops": {}}


def test_packets_are_counted_for_the_peer_they_went_to_and_came_from(rig: EngineRig) -> None:
    rig.from_tun(bytes(IP(src="10.1.1.5", dst="10.1.3.7") / UDP() / b"12345"))
    rig.from_peer("127.0.0.3", bytes(IP(src="10.1.3.7", dst="10.1.1.5") / UDP()))
    rig.poll()
    first_peer, second_peer = 2, 3
    assert rig.engine.peer_counters(first_peer) == (0, 0, 0, 0, 0)
    assert rig.engine.peer_counters(second_peer) == (1, 33, 1, 28, 0)


def test_the_order_of_a_burst_is_kept_also_around_dropped_packets(rig: EngineRig) -> None:
    for number in range(200):
        destination = "10.9.9.9" if number % 3 == 0 else "10.1.2.7"
        rig.from_tun(bytes(IP(src="10.1.1.5", dst=destination, id=number) / UDP()))
    rig.poll()
    assert [IP(datagram).id for datagram in rig.to_peer("127.0.0.2")] == [n for n in range(200) if n % 3]
    assert rig.drops("out") == {"no_route": 67}


@pytest.mark.parametrize(
    ("reason", "packet"),
    [
        ("no_route", IP(src="10.1.1.5", dst="10.1.4.1") / UDP()),
        ("own_subnet", IP(src="10.1.1.5", dst="10.1.1.9") / UDP()),
        ("ttl_expired", IP(src="10.1.1.5", dst="10.1.2.1", ttl=1) / UDP()),
        ("ttl_expired", IP(src="10.1.1.5", dst="10.1.2.1", ttl=0) / UDP()),
        ("not_unicast", IP(src="10.1.1.5", dst="224.0.0.251") / UDP()),
        ("not_unicast", IP(src="10.1.1.5", dst="255.255.255.255") / UDP()),
        ("not_ipv4", Raw(bytes.fromhex("60") + bytes(39))),
        ("bad_header_checksum", IP(src="10.1.1.5", dst="10.1.2.1", chksum=1) / UDP()),
    ],
)
def test_an_outbound_packet_that_cannot_go_is_dropped_for_its_reason(rig: EngineRig, reason: str, packet: IP) -> None:
    rig.from_tun(bytes(packet))
    rig.poll()
    assert rig.drops("out") == {reason: 1}
    assert rig.to_peer("127.0.0.2") == rig.to_peer("127.0.0.3") == rig.to_tun() == []


def test_the_packet_path_and_the_configuration_agree_on_which_addresses_a_host_can_have(rig: EngineRig) -> None:
    edges = [0, 0x01000000, 0x7F000000, 0x80000000, 0xE0000000, 0xF0000000, 0xFFFFFFFF, 0x0A010203, 0xFE000000]
    for edge in edges:
        for number in range(max(0, edge - 2), min(2**32 - 1, edge + 2) + 1):
            destination = IPv4Address(number)
            before = rig.drops("out").get("not_unicast", 0)
            rig.from_tun(bytes(IP(src="10.1.1.5", dst=str(destination)) / UDP()))
            rig.poll()
            dropped = rig.drops("out").get("not_unicast", 0) - before
            assert (dropped == 0) == is_unicast(destination), destination


@pytest.mark.parametrize(
    ("reason", "packet"),
    [
        ("spoofed_source", IP(src="10.1.3.1", dst="10.1.1.5") / UDP()),
        ("spoofed_source", IP(src="10.1.1.9", dst="10.1.1.5") / UDP()),
        ("not_our_subnet", IP(src="10.1.2.1", dst="10.1.3.5") / UDP()),
        ("not_our_subnet", IP(src="10.1.2.1", dst="224.0.0.1") / UDP()),
        ("not_our_subnet", IP(src="10.1.2.1", dst="8.8.8.8") / UDP()),
        ("ttl_expired", IP(src="10.1.2.1", dst="10.1.1.5", ttl=1) / UDP()),
        ("bad_header_checksum", IP(src="10.1.2.1", dst="10.1.1.5", chksum=0xFFFF) / UDP()),
        ("bad_total_len", Raw(bytes(IP(src="10.1.2.1", dst="10.1.1.5") / UDP()) + b"\0")),
    ],
)
def test_a_datagram_that_must_not_come_in_is_dropped_for_its_reason(rig: EngineRig, reason: str, packet: IP) -> None:
    rig.from_peer("127.0.0.2", bytes(packet))
    rig.poll()
    assert rig.drops("in") == {reason: 1}
    assert rig.to_tun() == []


def test_only_registered_peers_are_heard() -> None:
    with EngineRig(small_table(), peers=["127.0.0.2", "127.0.0.9"]) as rig:
        packet = bytes(IP(src="10.1.2.1", dst="10.1.1.5") / UDP())
        rig.from_peer("127.0.0.9", packet)
        rig.poll()
        assert rig.drops("in") == {"unknown_peer": 1}
        rig.from_peer("127.0.0.2", packet)
        rig.poll()
        assert len(rig.to_tun()) == 1


@pytest.mark.parametrize(
    ("source_check", "sender", "source", "accepted"),
    [
        ("strict", "127.0.0.2", "192.0.2.1", True),  # no lease covers the source: a host's own address
        ("strict", "127.0.0.2", "10.1.3.1", False),
        ("loose", "127.0.0.2", "10.1.3.1", True),
        ("loose", "127.0.0.9", "10.1.2.1", False),
        ("off", "127.0.0.9", "10.1.2.1", True),
        ("off", "127.0.0.9", "10.1.1.1", True),
    ],
)
def test_the_source_check_lets_in_what_its_level_says(
    source_check: str, sender: str, source: str, accepted: bool
) -> None:
    with EngineRig(small_table(), peers=["127.0.0.2", "127.0.0.9"], source_check=source_check) as rig:
        rig.from_peer(sender, bytes(IP(src=source, dst="10.1.1.5") / UDP()))
        rig.poll()
        assert len(rig.to_tun()) == accepted


@pytest.mark.parametrize("n_bytes", range(69))
def test_every_length_from_0_to_68_is_counted_and_never_delivered_when_it_lies(n_bytes: int) -> None:
    whole = bytes(IP(src="10.1.2.1", dst="10.1.1.5", len=69) / TCP() / bytes(29))
    with EngineRig(small_table()) as rig:
        rig.from_peer("127.0.0.2", whole[:n_bytes])
        if n_bytes:  # a TUN never gives an empty packet
            rig.from_tun(whole[:n_bytes])
        rig.poll()
        assert rig.to_tun() == rig.to_peer("127.0.0.2") == rig.to_peer("127.0.0.3") == []
        reason = "too_short" if n_bytes < 20 else "bad_total_len"
        assert rig.drops("in") == {reason: 1}
        assert rig.drops("out") == ({reason: 1} if n_bytes else {})


@pytest.mark.parametrize("version", range(16))
@pytest.mark.parametrize("words", range(16))
def test_every_version_and_header_length_is_checked(version: int, words: int) -> None:
    good = IP(src="10.1.2.1", dst="10.1.1.5", options=[]) / bytes(20)  # 40 bytes: at most 10 words fit
    packet = bytearray(bytes(good))
    packet[0] = version << 4 | words
    with EngineRig(small_table()) as rig:
        rig.from_peer("127.0.0.2", bytes(packet))
        rig.poll()
        if version != 4:
            assert rig.drops("in") == {"not_ipv4": 1}
        elif not 5 <= words <= 10:
            assert rig.drops("in") == {"bad_header_len": 1}
        elif words != 5:
            assert rig.drops("in") == {"bad_header_checksum": 1}
        else:
            assert len(rig.to_tun()) == 1


def test_the_largest_datagram_passes() -> None:
    with EngineRig(small_table()) as rig:
        largest = bytes(IP(src="10.1.2.1", dst="10.1.1.5") / Raw(bytes(65_507 - 20)))
        rig.from_peer("127.0.0.2", largest)
        rig.from_tun(bytes(IP(src="10.1.1.5", dst="10.1.2.1") / Raw(bytes(65_507 - 20))))
        rig.from_tun(bytes(IP(src="10.1.1.5", dst="10.1.2.1") / Raw(bytes(65_508 - 20))))
        rig.from_tun(bytes(IP(src="10.1.1.5", dst="10.1.2.1") / UDP()))
        rig.poll()
        assert [len(packet) for packet in rig.to_tun()] == [65_507]
        assert [len(packet) for packet in rig.to_peer("127.0.0.2")] == [65_507, 28]
        assert rig.drops("out") == {"too_big": 1}


def test_before_a_table_is_published_everything_is_dropped_and_counted() -> None:
    with EngineRig(ReferenceTable()) as rig:
        rig.from_tun(PING_OUT)
        rig.from_peer("127.0.0.2", PING_OUT)
        rig.poll()
        assert (rig.drops("out"), rig.drops("in")) == ({"no_route": 1}, {"unknown_peer": 1})


def test_every_drop_reason_has_its_sentence() -> None:
    reasons = [reason for reason in DropReason if reason not in (DropReason.KEEP, DropReason.DROP_REASONS)]
    assert sorted(SENTENCES) == reasons
    assert len(set(SENTENCES.values())) == len(reasons)


def test_a_published_table_is_used_from_the_next_packet_on() -> None:
    from tests.support.engine_rig import compile_table

    with EngineRig(small_table()) as rig:
        rig.from_tun(PING_OUT)
        rig.poll()
        moved = small_table()
        moved.routes = {
            prefix: IPv4Address("127.0.0.3") if hop == IPv4Address("127.0.0.2") else hop
            for prefix, hop in moved.routes.items()
        }
        rig.engine.publish(compile_table(moved))
        assert rig.engine.reclaim() == 0
        rig.from_tun(PING_OUT)
        rig.poll()
        assert (len(rig.to_peer("127.0.0.2")), len(rig.to_peer("127.0.0.3"))) == (1, 1)
