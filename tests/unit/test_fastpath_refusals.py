"""Every system call of the packet path fails, with every error: one drop reason each, no spin, the rest delivered."""

from __future__ import annotations

import errno
import os
import socket
import time
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP

from flannel_udp.dataplane.offload import SOL_UDP, UDP_GRO
from flannel_udp.dataplane.reference import VnetHeader, with_ttl
from flannel_udp.options import NO_OFFLOAD, Offload
from tests.support.agents import wait_for
from tests.support.engine_rig import EngineRig, compile_table, small_table
from tests.support.refusals import Refusal, refused

REASONS = {
    errno.EAGAIN: "queue_full",
    errno.EMSGSIZE: "too_big",
    errno.ENETUNREACH: "unreachable",
    errno.EHOSTUNREACH: "unreachable",
    errno.EPERM: "refused",
    errno.EACCES: "refused",
    errno.ENOBUFS: "no_memory",
    errno.ENOMEM: "no_memory",
    errno.EIO: "device_down",
    errno.EBADFD: "device_down",
    errno.ENETDOWN: "device_down",
    errno.ENODEV: "device_down",
    errno.EINVAL: "system_error",
    errno.EFAULT: "system_error",
}
EVERY_ERROR = pytest.mark.parametrize(
    ("error", "reason"), REASONS.items(), ids=lambda value: errno.errorcode.get(value, value)
)
WRITTEN_ONE_BY_ONE = {errno.EINVAL, errno.ENOMEM, errno.ENOBUFS}
RETRIED_ONE_BY_ONE = {errno.EIO, errno.EMSGSIZE, errno.EINVAL}
N_READS_TRIED = 16
READS_A_TURN, LOST_READS_MAX = 256, 65_536
VLEN, IOVCNT = 2, 2  # arguments of sendmmsg and of writev
JOINED_IOVCNT = 3  # a super-packet's headers and at least two payloads; a packet has two pieces at most
IP_RECVERR = 11  # linux/in.h
RECEIVE_PAUSE_S = 0.001


def as_sent(error: int, reason: str) -> str:
    """Return the reason that the error is for the socket: to a datagram, EINVAL is the word of routing."""
    return "unreachable" if error == errno.EINVAL else reason


def outbound(number: int, peer: int = 2, size: int = 100, **fields: Any) -> bytes:
    payload = UDP() / bytes(size - 28)
    return bytes(IP(src="10.1.1.5", dst=f"10.1.{peer}.7", id=number, flags="DF", **fields) / payload)


def ids(packets: list[bytes]) -> list[int]:
    return [IP(packet).id for packet in packets]


# sendmmsg


@EVERY_ERROR
def test_a_packet_that_cannot_be_sent_costs_itself_and_the_batchs_others_are(error: int, reason: str) -> None:
    with EngineRig(small_table(), offload=NO_OFFLOAD) as rig:
        for number in range(10):
            rig.from_tun(outbound(number))
        # The first of the ten messages fails; the call for the nine that are left does not.
        refused([Refusal("sendmmsg", error, {VLEN: 10})], rig.poll)
        # What is too large for loopback, of all ways, is asked about once more, and goes now.
        lost = error != errno.EMSGSIZE
        assert ids(rig.to_peer("127.0.0.2")) == list(range(lost, 10))
        drops = {as_sent(error, reason): 1} if lost else {}
        assert rig.counters("out") == {"packets": 10 - lost, "bytes": 1_000 - 100 * lost, "drops": drops}
        assert rig.engine.counters()["system_calls"]["udp_sends"] == (2 if lost else 3)


@EVERY_ERROR
@pytest.mark.parametrize("offload", [NO_OFFLOAD, Offload()], ids=["one by one", "in runs"])
def test_a_socket_that_takes_nothing_costs_every_packet_once_and_no_spinning(
    error: int, reason: str, offload: Offload
) -> None:
    with EngineRig(small_table(), offload=offload) as rig:
        for number in range(10):
            rig.from_tun(outbound(number))
        refused([Refusal("sendmmsg", error)], rig.poll)
        assert rig.counters("out") == {"packets": 0, "bytes": 0, "drops": {as_sent(error, reason): 10}}
        in_one_run = offload.udp_segment
        sends = (11 if error in RETRIED_ONE_BY_ONE else 1) if in_one_run else 10
        sends += 10 if error == errno.EMSGSIZE else 0  # each is asked about, in vain
        assert rig.engine.counters()["system_calls"]["udp_sends"] == sends
        rig.from_tun(outbound(10))
        rig.poll()
        assert ids(rig.to_peer("127.0.0.2")) == [10]


@EVERY_ERROR
def test_a_run_that_cannot_be_sent_whole_costs_no_other_run_a_packet(error: int, reason: str) -> None:
    """Two runs: the message of the first is refused, what is sent afterwards is not."""
    with EngineRig(small_table(), offload=Offload()) as rig:
        for number in range(10):
            rig.from_tun(outbound(number, peer=2 + number // 5))
        refused([Refusal("sendmmsg", error, {VLEN: 2})], rig.poll)
        assert ids(rig.to_peer("127.0.0.3")) == [5, 6, 7, 8, 9]
        if error in RETRIED_ONE_BY_ONE:
            assert ids(rig.to_peer("127.0.0.2")) == [0, 1, 2, 3, 4]
            assert rig.drops("out") == {}
        else:
            assert rig.to_peer("127.0.0.2") == []
            assert rig.drops("out") == {as_sent(error, reason): 5}
        # A device that cannot cut datagrams says EIO and never will; the other errors say nothing of it.
        assert rig.engine.segments == (error != errno.EIO)


def test_without_segmentation_packets_go_on_one_by_one_and_in_order() -> None:
    with EngineRig(small_table(), offload=Offload()) as rig:
        for number in range(5):
            rig.from_tun(outbound(number))
        rig.from_tun(outbound(5, peer=3))
        refused([Refusal("sendmmsg", errno.EIO, {VLEN: 2})], rig.poll)
        before = rig.engine.counters()["system_calls"]["udp_sends"]
        for number in range(6, 26):
            rig.from_tun(outbound(number))
        # Twenty messages in one call, not one message of twenty packets.
        refused([Refusal("sendmmsg", errno.ENOMEM, {VLEN: 1})], rig.poll)
        assert rig.engine.counters()["system_calls"]["udp_sends"] == before + 1
        assert ids(rig.to_peer("127.0.0.2")) == [*range(5), *range(6, 26)]
        assert rig.drops("out") == {}


def test_a_route_that_takes_no_runs_is_one_peers_and_is_tried_again() -> None:
    with EngineRig(small_table(), offload=Offload()) as rig:
        for end in rig.peers.values():
            end.setsockopt(SOL_UDP, UDP_GRO, 1)

        def sizes(peer: int) -> set[int]:
            """Send ten packets; return how long the messages are in which the peer's kernel hands them over."""
            for number in range(10):
                rig.from_tun(outbound(number, peer=peer))
            rig.poll()
            return set(map(len, rig.to_peer(f"127.0.0.{peer}")))

        for peer in (2, 3):
            rig.from_tun(outbound(0, peer=peer))
            rig.from_tun(outbound(1, peer=peer))
        refused([Refusal("sendmmsg", errno.EIO, {VLEN: 2})], rig.poll)  # the first of two runs, to peer 2
        for peer in (2, 3):
            rig.to_peer(f"127.0.0.{peer}")
        assert (sizes(2), sizes(3)) == ({100}, {1_000})
        assert not rig.engine.segments
        wait_for("a run is tried again", lambda: sizes(2) == {1_000})
        assert rig.engine.segments
        assert rig.drops("out") == {}


def refuse_a_run(rig: EngineRig, peer: int) -> None:
    """Let the route to a peer take no run: the first of two messages, the other one is the other peer's."""
    for number, to in enumerate((peer, peer, 5 - peer)):
        rig.from_tun(outbound(number, peer=to))
    refused([Refusal("sendmmsg", errno.EIO, {VLEN: 2})], rig.poll)
    for to in (peer, 5 - peer):
        rig.to_peer(f"127.0.0.{to}")
    assert not rig.engine.segments


@pytest.mark.parametrize(("leaves", "stays"), [(2, 3), (3, 2)], ids=["another has its index", "its index is nobody's"])
def test_a_route_that_took_no_runs_is_forgotten_with_its_peer(leaves: int, stays: int) -> None:
    both = small_table()
    with EngineRig(both, offload=Offload()) as rig:
        refuse_a_run(rig, peer=leaves)
        rig.engine.publish(compile_table(both))  # of others, say
        rig.from_tun(outbound(2, peer=stays))
        rig.poll()
        assert not rig.engine.segments
        left = {prefix: hop for prefix, hop in both.routes.items() if hop != IPv4Address(f"127.0.0.{leaves}")}
        rig.engine.publish(compile_table(replace(both, routes=left)))
        rig.from_tun(outbound(3, peer=stays))
        rig.poll()
        assert rig.engine.segments
        rig.engine.publish(compile_table(both))  # back again, perhaps by another way
        refuse_a_run(rig, peer=leaves)


def test_other_sockets_have_other_ways_to_the_peers_and_all_may_take_runs() -> None:
    with EngineRig(small_table(), offload=Offload()) as rig:
        rig.peers["127.0.0.2"].setsockopt(SOL_UDP, UDP_GRO, 1)
        refuse_a_run(rig, peer=2)
        rig.engine.attach(rig.tun_fd, rig.udp_fd, segment=True)
        assert rig.engine.segments
        for number in range(10):
            rig.from_tun(outbound(number))
        rig.poll()
        assert list(map(len, rig.to_peer("127.0.0.2"))) == [1_000]
        assert rig.engine.segments


def test_the_sender_of_what_is_too_big_is_not_told_a_size_that_nobody_knows() -> None:
    """The path's MTU is asked by way of a socket, and there may be none left."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as icmp,
        EngineRig(small_table(), icmp_fd=icmp.fileno()) as rig,
    ):
        rig.from_tun(outbound(0))
        refused(
            [Refusal("sendmmsg", errno.EMSGSIZE), Refusal("socket", errno.EMFILE), Refusal("sendto", errno.EPERM)],
            rig.engine.poll,  # the rig sends, too
        )
        assert rig.drops("out") == {"too_big": 1}
        assert rig.engine.counters()["icmp"] == {"sent": 0, "rate_limited": 0, "failed": 0}


def test_the_sender_of_what_is_too_big_is_not_told_the_size_that_was_refused() -> None:
    """The path to the peer carries it, as far as the kernel says: loopback."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as icmp,
        EngineRig(small_table(), icmp_fd=icmp.fileno()) as rig,
    ):
        rig.from_tun(outbound(0))
        refused([Refusal("sendmmsg", errno.EMSGSIZE)], rig.engine.poll)
        assert rig.drops("out") == {"too_big": 1}
        assert rig.engine.counters()["icmp"] == {"sent": 0, "rate_limited": 0, "failed": 0}
        with socket.socket(fileno=os.dup(rig.udp_fd)) as lane:
            assert lane.getsockopt(socket.IPPROTO_IP, IP_RECVERR) == 0
        rig.from_tun(outbound(1))
        rig.poll()
        assert ids(rig.to_peer("127.0.0.2")) == [1]


# recvmmsg


@pytest.mark.parametrize("error", [errno.EPERM, errno.EACCES, errno.ENOMEM, errno.ENOBUFS], ids=errno.errorcode.get)
def test_a_socket_that_gives_nothing_makes_nobody_spin_and_what_waits_there_comes_later(error: int) -> None:
    lasts_s = 0.1
    packet = bytes(IP(src="10.1.2.7", dst="10.1.1.5") / UDP())
    with EngineRig(small_table()) as rig:
        rig.from_peer("127.0.0.2", packet)

        def keep_polling() -> None:
            """As the loop does, which finds the socket readable again and again."""
            started_s = time.monotonic()
            while time.monotonic() - started_s < lasts_s:
                assert rig.engine.poll() == 0

        refused([Refusal("recvmmsg", error, {0: rig.udp_fd})], keep_polling)
        assert 0 < rig.engine.counters()["system_calls"]["udp_receives"] <= lasts_s / RECEIVE_PAUSE_S + 1
        assert rig.drops("in") == {}
        rig.poll()
        assert len(rig.to_tun()) == 1


def test_what_the_host_sends_goes_out_while_the_socket_gives_nothing() -> None:
    with EngineRig(small_table()) as rig:
        rig.from_peer("127.0.0.2", b"x")
        rig.from_tun(outbound(1))
        refused([Refusal("recvmmsg", errno.ENOMEM, {0: rig.udp_fd})], rig.poll)
        assert ids(rig.to_peer("127.0.0.2")) == [1]


# TUN write


def segments(n: int, dst: str = "10.1.1.5") -> list[bytes]:
    """Return a flow's TCP segments; the last one pushes."""
    ip = IP(src="10.1.2.7", dst=dst, flags="DF")
    flags = ["A"] * (n - 1) + ["PA"]
    return [bytes(ip / TCP(sport=5, dport=6, seq=100 * i, flags=flags[i]) / (bytes([i]) * 100)) for i in range(n)]


def lowered(packets: list[bytes]) -> list[bytes]:
    """Packets as they come out of the tunnel: TTL one lower."""
    return [with_ttl(packet, packet[8] - 1) for packet in packets]


@EVERY_ERROR
def test_a_tun_that_takes_nothing_costs_every_packet_once(error: int, reason: str) -> None:
    with EngineRig(small_table(), offload=Offload()) as rig:
        for packet in [*segments(20), bytes(IP(src="10.1.2.7", dst="10.1.1.5") / UDP())]:
            rig.from_peer("127.0.0.2", packet)
        refused([Refusal("writev", error, {0: rig.tun_fd})], rig.poll)
        assert rig.counters("in") == {"packets": 0, "bytes": 0, "drops": {reason: 21}}
        assert rig.engine.peer_counters(2) == (0, 0, 0, 0, 0)
        assert rig.engine.counters()["system_calls"]["tun_writes"] == (22 if error in WRITTEN_ONE_BY_ONE else 2)


@EVERY_ERROR
def test_a_super_packet_that_the_tun_does_not_take_is_written_segment_by_segment_where_that_can_help(
    error: int, reason: str
) -> None:
    """As where the kernel finds no 64 KiB in one piece, but small ones."""
    with EngineRig(small_table(), offload=Offload()) as rig:
        alone = bytes(IP(src="10.1.2.7", dst="10.1.1.5", id=77) / UDP())
        for packet in [alone, *segments(20), alone]:
            rig.from_peer("127.0.0.2", packet)
        refused([Refusal("writev", error, {0: rig.tun_fd}, at_least={IOVCNT: JOINED_IOVCNT})], rig.poll)
        written = rig.to_tun_raw()
        assert {vnet for vnet, _ in written} == {VnetHeader()}
        if error in WRITTEN_ONE_BY_ONE:
            assert [packet for _, packet in written] == lowered([alone, *segments(20), alone])
            assert rig.counters("in") == {"packets": 22, "bytes": 20 * 140 + 56, "drops": {}}
            assert rig.engine.peer_counters(2)[2:] == (22, 20 * 140 + 56, 0)
        else:
            assert [packet for _, packet in written] == lowered([alone, alone])
            assert rig.counters("in") == {"packets": 2, "bytes": 56, "drops": {reason: 20}}
        assert rig.engine.counters()["system_calls"]["tun_join_errors"] == 1
        assert (rig.engine.joins_tcp, rig.engine.joins_udp) == (error != errno.EINVAL, True)


JOINS_REFUSED = Refusal("writev", errno.EINVAL, at_least={IOVCNT: JOINED_IOVCNT})


def test_segments_of_interleaved_flows_keep_every_byte_when_their_super_packets_are_refused() -> None:
    """What lies in front of a segment in memory may be another flow's, and not written yet."""
    flows = [segments(20, dst=f"10.1.1.{host}") for host in (5, 6, 7)]
    mixed = [packet for row in zip(*flows, strict=True) for packet in row]
    with EngineRig(small_table(), offload=Offload()) as rig:
        rig.bundle_from_peer("127.0.0.2", mixed)
        refused([JOINS_REFUSED], rig.poll)
        assert rig.to_tun() == lowered([packet for flow in flows for packet in flow])
        assert rig.counters("in") == {"packets": 60, "bytes": 60 * 140, "drops": {}}


def test_joins_that_are_refused_stop_for_that_protocol_only_and_come_back() -> None:
    datagrams = [bytes(IP(src="10.1.2.7", dst="10.1.1.5", id=i) / UDP() / b"x") for i in range(10)]
    with EngineRig(small_table(), offload=Offload()) as rig:

        def writes_of(packets: list[bytes]) -> list[VnetHeader]:
            rig.bundle_from_peer("127.0.0.2", packets)
            rig.poll()
            return [vnet for vnet, _ in rig.to_tun_raw()]

        def refuse_one() -> None:
            writes_of(segments(20))
            refusals = rig.engine.counters()["system_calls"]["tun_join_errors"]
            assert len(writes_of(segments(20))) == 20
            assert rig.engine.counters()["system_calls"]["tun_join_errors"] == refusals

        refused([JOINS_REFUSED], refuse_one)
        assert not rig.engine.joins_tcp
        assert len(writes_of(datagrams)) == 1
        # Tried again: refused once more, and again later; then the kernel takes it.
        wait_for("joins are tried again", lambda: len(writes_of(segments(20))) == 1)
        assert rig.engine.joins_tcp
        assert len(writes_of(segments(20))) == 1
        assert rig.drops("in") == {}


# TUN read


@pytest.mark.parametrize(
    "error", [errno.EBADFD, errno.ENOMEM, errno.ENOBUFS, errno.EPERM, errno.EIO, errno.EFAULT], ids=errno.errorcode.get
)
def test_a_tun_that_gives_nothing_is_given_up_after_some_tries_and_a_deleted_one_at_once(error: int) -> None:
    with EngineRig(small_table()) as rig:
        rig.from_tun(outbound(1))

        def keep_polling() -> None:
            for _ in range(3 * N_READS_TRIED):
                assert rig.engine.poll() == 0

        refused([Refusal("read", error, {0: rig.tun_fd})], keep_polling)
        assert rig.engine.tun_errno == error
        tries = 1 if error == errno.EBADFD else N_READS_TRIED
        calls = rig.engine.counters()["system_calls"]
        assert (calls["tun_reads"], calls["tun_read_errors"]) == (tries, tries)


def poll_in_vain(rig: EngineRig, turns: int) -> None:
    """Poll while the kernel answers every read with EINVAL, as it does where no virtio-net header fits a packet."""
    refused([Refusal("read", errno.EINVAL, {0: rig.tun_fd})], lambda: [rig.engine.poll() for _ in range(turns)])


def test_what_the_kernel_cannot_describe_costs_a_packet_each_and_not_the_tun() -> None:
    with EngineRig(small_table()) as rig:
        rig.from_tun(outbound(1))
        poll_in_vain(rig, 3 * N_READS_TRIED)
        n_lost = 3 * N_READS_TRIED * READS_A_TURN
        calls = rig.engine.counters()["system_calls"]
        assert (calls["tun_reads"], calls["tun_read_errors"]) == (n_lost, n_lost)
        assert rig.drops("out") == {"bad_offload": n_lost}
        assert rig.engine.tun_errno == 0
        rig.poll()
        assert ids(rig.to_peer("127.0.0.2")) == [1]


def test_a_tun_that_says_nothing_else_is_given_up_after_far_more_than_its_queue_holds() -> None:
    turns = LOST_READS_MAX // READS_A_TURN
    with EngineRig(small_table()) as rig:
        for number in range(2):
            rig.from_tun(outbound(number))
            poll_in_vain(rig, turns - 1)
            rig.poll()
        assert rig.engine.tun_errno == 0
        assert ids(rig.to_peer("127.0.0.2")) == [0, 1]
        rig.from_tun(outbound(2))
        poll_in_vain(rig, turns + 1)
        assert rig.engine.tun_errno == errno.EINVAL
        assert rig.drops("out") == {"bad_offload": (2 * (turns - 1) + turns) * READS_A_TURN}


def test_a_tun_that_recovers_in_time_is_not_given_up() -> None:
    with EngineRig(small_table()) as rig:

        def fail_nearly_too_often() -> None:
            for _ in range(N_READS_TRIED - 1):
                rig.engine.poll()

        for number in range(3):
            rig.from_tun(outbound(number))
            refused([Refusal("read", errno.ENOMEM, {0: rig.tun_fd})], fail_nearly_too_often)
            rig.poll()
        assert rig.engine.tun_errno == 0
        assert ids(rig.to_peer("127.0.0.2")) == [0, 1, 2]


# Raw ICMP socket


@EVERY_ERROR
def test_an_answer_that_cannot_be_sent_is_counted_and_the_packet_is_dropped_for_its_own_reason(
    error: int, reason: str
) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as icmp,
        EngineRig(small_table(), icmp_fd=icmp.fileno()) as rig,
    ):
        for number in range(3):
            rig.from_tun(outbound(number, peer=9))
        rig.from_tun(outbound(3))
        refused([Refusal("sendto", error, {0: icmp.fileno()})], rig.poll)
        assert rig.engine.counters()["icmp"] == {"sent": 0, "rate_limited": 0, "failed": 3}
        assert rig.drops("out") == {"no_route": 3}
        assert ids(rig.to_peer("127.0.0.2")) == [3]
        assert reason  # the reasons are the packets', never the answers'


# Probing


def test_a_vnet_header_alone_is_too_short_a_packet() -> None:
    with EngineRig(small_table()) as rig:
        for n_bytes in range(1, 12):
            rig.tun.send(VnetHeader().pack()[:n_bytes] + b"\x45" * (n_bytes - 10))
        rig.from_tun(outbound(1))
        rig.poll()
        assert rig.drops("out") == {"too_short": 11}
        assert ids(rig.to_peer("127.0.0.2")) == [1]
