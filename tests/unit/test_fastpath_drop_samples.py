"""What the packet path remembers of the packets that it dropped."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6

from flannel_udp.dataplane.dropped import last_dropped
from flannel_udp.model import DroppedPacket
from tests.support.engine_rig import EngineRig, small_table

STRANGER = "127.0.0.9"


@pytest.fixture
def rig() -> Iterator[EngineRig]:
    with EngineRig(small_table(), peers=["127.0.0.2", STRANGER]) as rig:
        yield rig


def test_a_strangers_packet_is_remembered_with_outer_and_inner_addresses(rig: EngineRig) -> None:
    before = time.time()
    rig.from_peer(STRANGER, bytes(IP(src="10.1.2.7", dst="10.1.1.5") / UDP() / bytes(30)))
    rig.poll()
    (dropped,) = last_dropped([rig.engine])["unknown_peer"]
    assert before - 0.1 <= dropped.time_s <= time.time()
    assert dropped == DroppedPacket(
        "in",
        dropped.time_s,
        IPv4Address(STRANGER),
        4,
        IPv4Address("10.1.2.7"),
        IPv4Address("10.1.1.5"),
        17,
        58,
    )


def test_an_outbound_packet_is_remembered_with_the_peer_that_it_was_for_if_it_was_for_one(rig: EngineRig) -> None:
    rig.from_tun(bytes(IP(src="10.1.1.5", dst="10.1.2.7", ttl=1) / UDP()))
    rig.from_tun(bytes(IP(src="10.1.1.5", dst="10.1.9.7") / UDP()))
    rig.poll()
    dropped = last_dropped([rig.engine])
    assert [packet.outer for packet in dropped["ttl_expired"]] == [IPv4Address("127.0.0.2")]
    assert [packet.outer for packet in dropped["no_route"]] == [None]
    assert dropped["no_route"][0].destination == IPv4Address("10.1.9.7")


@pytest.mark.parametrize("packet", [b"", b"\x45", bytes(19)])
def test_a_packet_without_a_header_has_no_addresses(rig: EngineRig, packet: bytes) -> None:
    rig.from_peer(STRANGER, packet)
    rig.poll()
    (dropped,) = last_dropped([rig.engine])["too_short"]
    assert (dropped.version, dropped.source, dropped.destination, dropped.protocol) == (None, None, None, None)
    assert (dropped.outer, dropped.n_bytes) == (IPv4Address(STRANGER), len(packet))


@pytest.mark.parametrize(("version", "n_bytes"), [(5, 40), (6, 39)])
def test_what_is_no_ip_header_has_a_version_and_no_addresses(rig: EngineRig, version: int, n_bytes: int) -> None:
    rig.from_tun(bytes((version << 4,)).ljust(n_bytes, b"\0"))
    rig.poll()
    (dropped,) = last_dropped([rig.engine])["not_ipv4"]
    assert (dropped.version, dropped.source, dropped.destination) == (version, None, None)


def test_ipv6_that_an_ipv4_network_drops_is_told_by_its_addresses(rig: EngineRig) -> None:
    rig.from_tun(bytes(IPv6(src="fd00::5", dst="ff02::2", nh=58)))
    rig.poll()
    (dropped,) = last_dropped([rig.engine])["not_ipv4"]
    assert (dropped.source, dropped.destination) == (IPv6Address("fd00::5"), IPv6Address("ff02::2"))
    assert (dropped.version, dropped.protocol, dropped.outer) == (6, 58, None)


def test_the_last_five_of_each_reason_are_kept_newest_last(rig: EngineRig) -> None:
    for number in range(12):
        rig.from_tun(bytes(IP(src="10.1.1.5", dst=f"10.1.9.{number}") / UDP()))
    rig.from_tun(bytes(IP(src="10.1.1.5", dst="224.0.0.1") / UDP()))
    rig.poll()
    dropped = last_dropped([rig.engine])
    assert [int(str(packet.destination).split(".")[3]) for packet in dropped["no_route"]] == [7, 8, 9, 10, 11]
    assert len(dropped["not_unicast"]) == 1
    assert set(dropped) == {"no_route", "not_unicast"}


def test_of_several_engines_and_both_directions_the_newest_five_are_taken() -> None:
    with EngineRig(small_table()) as first, EngineRig(small_table()) as second:
        for number in range(4):
            for rig in (first, second):
                rig.from_tun(bytes(IP(src="10.1.1.5", dst="10.1.2.7", ttl=1) / UDP() / bytes(number)))
                rig.from_peer("127.0.0.2", bytes(IP(src="10.1.2.7", dst="10.1.1.5", ttl=1) / UDP() / bytes(number)))
                rig.poll()
            time.sleep(0.02)  # further apart than the ticks of the clock that is read
        dropped = last_dropped([first.engine, second.engine])["ttl_expired"]
        assert [packet.n_bytes for packet in dropped] == [30, 31, 31, 31, 31]


def test_what_is_read_while_the_engine_writes_is_never_half_of_one_packet_and_half_of_another() -> None:
    with EngineRig(small_table()) as rig:
        packets = [
            bytes(IP(src=f"10.1.{number}.1", dst=f"10.9.{number}.1") / UDP() / bytes(number)) for number in range(200)
        ]
        stop = threading.Event()

        def drop_packets() -> None:
            while not stop.is_set():
                for packet in packets:
                    rig.from_tun(packet)
                rig.poll()

        writer = threading.Thread(target=drop_packets)
        writer.start()
        try:
            seen: set[int] = set()
            while len(seen) < 100:
                for packet in last_dropped([rig.engine]).get("no_route", ()):
                    assert packet.source is not None
                    assert packet.destination is not None
                    numbers = (packet.source.packed[2], packet.destination.packed[2], packet.n_bytes - 28)
                    assert len(set(numbers)) == 1
                    seen.add(numbers[0])
        finally:
            stop.set()
            writer.join()


@pytest.mark.parametrize("source", ["127.0.0.1", "10.1.1.0"], ids=["our own address", "masqueraded as flannel0's"])
@pytest.mark.parametrize("fragment", [0, 64])
def test_our_own_datagram_that_comes_back_is_not_encapsulated_again(rig: EngineRig, source: str, fragment: int) -> None:
    rig.from_tun(bytes(IP(src=source, dst="127.0.0.2", frag=fragment) / UDP(sport=rig.port, dport=rig.port)))
    rig.poll()
    assert rig.drops("out") == {"looped": 1}
    (dropped,) = last_dropped([rig.engine])["looped"]
    assert dropped.destination == IPv4Address("127.0.0.2")


def test_what_this_host_sends_to_pods_is_no_loop(rig: EngineRig) -> None:
    for source in ("127.0.0.1", "10.1.1.0"):
        rig.from_tun(bytes(IP(src=source, dst="10.1.2.7") / UDP(sport=rig.port, dport=rig.port)))
    rig.poll()
    assert rig.drops("out") == {}
    assert len(rig.to_peer("127.0.0.2")) == 2
