"""What the engine says would become of a packet is what becomes of it, and asking leaves no trace."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from ipaddress import IPv4Address, ip_address

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import IPv6

from flannel_udp._fastpath.trial import refusal
from flannel_udp.dataplane import reference
from flannel_udp.dataplane.encapsulation import Encapsulation
from flannel_udp.dataplane.reference import Dropped, Forwarded
from flannel_udp.options import Offload
from tests.support.engine_rig import IPIP, VXLAN, EngineRig, small_table
from tests.support.refusals import Refusal, refused

POD, PEERS_POD = "10.1.1.5", "10.1.2.7"
SEED = 20261129
VLEN = 2  # argument of sendmmsg


def v4_packets() -> list[bytes]:
    """Sound packets for every next hop, and each kind of damage."""
    chance = random.Random(SEED)
    sources = [POD, "10.1.2.7", "10.1.4.1", "127.0.0.1", "10.1.1.0", "0.0.0.0"]
    targets = [PEERS_POD, "10.1.3.9", POD, "10.1.1.77", "10.1.9.1", "224.0.0.5", "255.255.255.255", "127.0.0.2"]
    made = [
        bytes(IP(src=source, dst=target, ttl=ttl, tos=chance.choice([0, 1, 2, 3, 0xB8])) / UDP() / bytes(size))
        for source in sources
        for target in targets
        for ttl, size in ((0, 0), (1, 5), (2, 100), (64, 1400))
    ]
    damaged = [bytearray(chance.choice(made)) for _ in range(200)]
    for packet in damaged:
        packet[chance.randrange(20)] = chance.randrange(256)
    return [*made, *map(bytes, damaged), b"", b"\x45", b"\x60" + bytes(39)]


def state_of(rig: EngineRig) -> tuple[object, ...]:
    return (
        rig.engine.counters(),
        rig.engine.drop_samples(),
        rig.engine.peer_counters(2),
        rig.engine.sample_peers(2, 9),
    )


@pytest.fixture(params=[None, VXLAN, IPIP], ids=["udp", "vxlan", "ipip"])
def rig(request: pytest.FixtureRequest) -> Iterator[tuple[EngineRig, reference.ReferenceTable]]:
    table = small_table(request.param) if request.param else small_table()
    with EngineRig(table) as rig:
        yield rig, table


def test_packets_out_are_judged_as_the_twin_does_and_nothing_leaves(
    rig: tuple[EngineRig, reference.ReferenceTable],
) -> None:
    engine_rig, table = rig
    before = state_of(engine_rig)
    for packet in v4_packets():
        reason, inner, _, peer, sent, _ = engine_rig.engine.try_packet(packet)
        expected = reference.outbound(packet, table)
        if isinstance(expected, Dropped):
            assert (reason, sent) == (expected.reason, [])
            continue
        assert expected.to is not None
        assert reason == ""
        assert (inner, ip_address(peer)) == (expected.packet, expected.to)
        (payload, tos, fragmentable, _) = sent[0]
        assert payload == reference.encapsulated(expected.packet, expected.to, table)
        assert (tos & 3, fragmentable) == (packet[1] & 3, False)
    assert state_of(engine_rig) == before
    assert all(engine_rig.to_peer(address) == [] for address in ("127.0.0.2", "127.0.0.3"))


@pytest.mark.parametrize("source_check", ["strict", "loose", "off"])
@pytest.mark.parametrize("encapsulation", [Encapsulation("udp"), VXLAN, IPIP], ids=["udp", "vxlan", "ipip"])
def test_datagrams_in_are_judged_as_the_twin_does_and_nothing_arrives(
    encapsulation: Encapsulation, source_check: str
) -> None:
    table = small_table(encapsulation)
    with EngineRig(table, source_check=source_check) as rig:
        before = state_of(rig)
        for packet in v4_packets():
            for sender in map(IPv4Address, ("127.0.0.2", "127.0.0.3", "127.0.0.9")):
                datagram = reference.from_the_wire(packet, sender, table, tos := packet[1] & 3 if packet[1:] else 0)
                reason, inner, _, _ = rig.engine.try_datagram(datagram, sender.packed, tos)
                expected = reference.inbound(datagram, sender, table, source_check, tos)
                if isinstance(expected, Forwarded):
                    assert (reason, inner) == ("", expected.packet)
                else:
                    assert reason == expected.reason
        assert state_of(rig) == before
        assert rig.to_tun() == []


def test_what_is_sent_afterwards_is_what_was_foretold() -> None:
    with EngineRig(small_table(VXLAN), lanes=True, source_ports=4) as rig:
        packets = [bytes(IP(src=POD, dst=PEERS_POD, tos=1) / UDP(sport=port) / b"x") for port in range(1, 9)]
        foretold = [rig.engine.try_packet(packet)[4][0] for packet in packets]
        for packet in packets:
            rig.from_tun(packet)
        rig.poll()
        assert sorted(rig.to_peer("127.0.0.2")) == sorted(payload for payload, *_ in foretold)
        assert len({lane for *_, lane in foretold}) > 1  # a flow's packets always take the same one


def test_nothing_is_sent_either_for_a_peer_whose_route_takes_no_runs() -> None:
    with EngineRig(small_table(), offload=Offload()) as rig:
        for number in range(2):
            rig.from_tun(bytes(IP(src=POD, dst=PEERS_POD, id=number) / UDP() / bytes(500)))
        refused([Refusal("sendmmsg", errno.EIO, {VLEN: 1})], rig.poll)
        assert not rig.engine.segments
        rig.to_peer("127.0.0.2")
        rig.engine.limit_path_mtu(2, int(IPv4Address("127.0.0.2")), 576)
        before = rig.engine.counters()
        sent = rig.engine.try_packet(bytes(IP(src=POD, dst=PEERS_POD) / UDP() / bytes(45_000)))[4]
        assert len(sent) > 64  # more than there are runs in a queue
        assert rig.engine.counters() == before
        assert rig.to_peer("127.0.0.2") == []


def test_the_sender_would_get_the_answer_that_the_twin_knows() -> None:
    table = small_table()
    with EngineRig(table, icmp_fd=0) as rig:  # a descriptor: nothing is sent through it
        for target, ttl in (("10.1.9.1", 64), ("10.1.1.9", 64), (PEERS_POD, 1)):
            packet = bytes(IP(src=POD, dst=target, ttl=ttl) / UDP() / b"abc")
            expected = reference.outbound(packet, table)
            assert isinstance(expected, Dropped)
            assert rig.engine.try_packet(packet)[2] == expected.answer
        assert rig.engine.try_packet(bytes(IP(src=POD, dst="10.1.9.1") / ICMP(type=3) / b"quote"))[2] == b""


def test_a_path_that_probes_found_narrow_cuts_or_refuses_and_nothing_is_learnt() -> None:
    with EngineRig(small_table(), icmp_fd=0) as rig:
        rig.engine.limit_path_mtu(2, int(IPv4Address("127.0.0.2")), 600)
        may, may_not = (bytes(IP(src=POD, dst=PEERS_POD, flags=df) / UDP() / bytes(1200)) for df in ("", "DF"))
        reason, _, _, _, sent, (path, probed, limit) = rig.engine.try_packet(may)
        assert (reason, probed, limit) == ("", 600, 600)
        assert path > 60_000  # loopback's
        assert [len(payload) for payload, *_ in sent] == [596, 596, 76]
        reason, _, answer, _, sent, _ = rig.engine.try_packet(may_not)
        assert (reason, sent) == ("too_big", [])
        assert int.from_bytes(answer[26:28], "big") == 600
        rig.from_tun(may)
        rig.poll()
        assert [len(datagram) for datagram in rig.to_peer("127.0.0.2")] == [596, 596, 76]


def test_no_packet_is_sent_for_a_lease_that_has_run_out() -> None:
    with EngineRig(small_table()) as rig:
        rig.engine.forward_until(1)
        assert rig.engine.try_packet(bytes(IP(src=POD, dst=PEERS_POD) / UDP()))[0] == "lease_expired"


def test_ipv6_is_judged_as_the_twin_does() -> None:
    table = small_table(version=6)
    ours, theirs = "fd00:10:244:1::5", "fd00:10:244:2::7"
    ends = [(ours, theirs), (ours, "fd00:10:244:9::1"), (ours, ours), (ours, "ff02::1"), ("fe80::1", theirs)]
    with EngineRig(table) as rig:
        for source, target in ends:
            for hops in (1, 64):
                packet = bytes(IPv6(src=source, dst=target, hlim=hops) / UDP() / b"abc")
                expected = reference.outbound(packet, table)
                reason, inner, _, _, sent, _ = rig.engine.try_packet(packet)
                assert reason == (expected.reason if isinstance(expected, Dropped) else "")
                assert not sent or inner == sent[0][0] == expected.packet  # type: ignore[union-attr]


def test_an_errno_is_what_it_is_counted_as() -> None:
    assert [refusal(code) for code in (101, 113, 22, 1, 90)] == [*["unreachable"] * 3, "refused", "too_big"]
