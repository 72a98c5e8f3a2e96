"""Raw sockets for IP in IP: who receives what, and what leaves, against a real kernel."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, UDP

from flannel_udp.dataplane.lanes import LANES, close_lanes
from flannel_udp.dataplane.raw_underlay import check_raw_sockets, open_raw_lanes, open_raw_sockets
from flannel_udp.dataplane.underlay import BUFFER_BYTES, close_sockets, count_socket_drops, granted_buffers
from flannel_udp.errors import FlannelError
from flannel_udp.lab.netns import is_readable, wait_until
from tests.support.labs import NEEDS_NETNS
from tests.support.one_host import OneHost, one_host
from tests.support.patience import PATIENCE_S

pytestmark = NEEDS_NETNS

HERE, PEER = IPv4Address("127.0.0.1"), IPv4Address("127.0.0.2")
SENDERS = [f"127.0.0.{i}" for i in range(2, 30)]
INNER = IP(src="10.1.2.7", dst="10.1.1.5") / UDP(sport=7, dport=8) / b"inner"


@pytest.fixture
def host() -> Iterator[OneHost]:
    with one_host() as made:
        yield made


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def opened(host: OneHost, stack: ExitStack, n: int = 1, address: IPv4Address = HERE) -> list[socket.socket]:
    sockets = host.call(open_raw_sockets, address, n)
    stack.callback(close_sockets, sockets)
    return sockets


def foreign(host: OneHost, stack: ExitStack, address: str) -> socket.socket:
    """Return a plain raw socket of protocol 4."""
    raw = stack.enter_context(host.call(socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_IPIP))
    raw.bind((address, 0))
    raw.settimeout(PATIENCE_S)
    return raw


def drained(raw: socket.socket) -> list[bytes]:
    """Return what waits. What was sent on the loopback interface does soon: a busy kernel leaves it to a thread."""
    found = []
    while is_readable(raw.fileno(), 0):
        found.append(raw.recv(65_535))
    return found


def senders(sockets: Sequence[socket.socket]) -> list[list[str]]:
    return [[IP(packet).src for packet in drained(raw)] for raw in sockets]


def test_what_leaves_is_the_inner_packet_behind_a_header_of_twenty_bytes(host: OneHost, stack: ExitStack) -> None:
    peer = foreign(host, stack, str(PEER))
    (raw,) = opened(host, stack)
    raw.sendto(bytes(INNER), (str(PEER), 0))
    outer = IP(peer.recv(65_535))
    assert (outer.src, outer.dst, outer.proto, outer.ihl) == (str(HERE), str(PEER), 4, 5)
    assert (outer.flags.DF, outer.flags.MF, outer.frag, outer.tos) == (True, False, 0, 0)
    assert bytes(outer.payload) == bytes(INNER)


def test_what_arrives_has_its_outer_header_and_its_fragments_put_together(host: OneHost, stack: ExitStack) -> None:
    (raw,) = opened(host, stack)
    large = bytes(INNER) + bytes(3_000)
    with host.call(socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sender:
        for offset in range(0, len(large), 800):
            part = large[offset : offset + 800]
            more = "MF" if offset + 800 < len(large) else 0
            outer = IP(src=str(PEER), dst=str(HERE), proto=4, id=7, flags=more, frag=offset // 8)
            sender.sendto(bytes(outer / part), (str(HERE), 0))
    outer = IP(raw.recv(65_535))
    assert (outer.src, outer.len, outer.flags.value, outer.frag) == (str(PEER), 20 + len(large), 0, 0)
    assert bytes(outer.payload) == large


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_each_worker_receives_all_of_its_peers_and_nobody_receives_twice(
    workers: int, host: OneHost, stack: ExitStack
) -> None:
    sockets = opened(host, stack, workers)
    lanes = host.call(open_raw_lanes, sockets)
    stack.callback(close_lanes, lanes)
    for sender in SENDERS:
        raw = foreign(host, stack, sender)
        for _ in range(3):
            raw.sendto(bytes(INNER), (str(HERE), 0))
    by_worker: list[list[str]] = [[] for _ in sockets]

    def all_have_come() -> bool:
        for had, more in zip(by_worker, senders(sockets), strict=True):
            had.extend(more)
        return sum(map(len, by_worker)) >= 3 * len(SENDERS)

    assert wait_until(all_have_come, PATIENCE_S)
    assert sorted(sender for found in by_worker for sender in found) == sorted(SENDERS * 3)
    assert all(by_worker)
    assert sum(len(set(found)) for found in by_worker) == len(SENDERS)
    further = [lane for each in lanes for lane in each.sockets if lane not in sockets]
    assert senders(further) == [[]] * len(further)
    assert count_socket_drops(sockets) == 0


def test_more_workers_than_lanes_have_their_own_socket_only(host: OneHost, stack: ExitStack) -> None:
    sockets = opened(host, stack, LANES + 1)
    lanes = host.call(open_raw_lanes, sockets)
    stack.callback(close_lanes, lanes)
    assert [each.sockets for each in lanes] == [[raw] for raw in sockets]


def test_what_leaves_by_any_lane_is_alike_and_lanes_are_no_receivers(host: OneHost, stack: ExitStack) -> None:
    peer = foreign(host, stack, str(PEER))
    sockets = opened(host, stack)
    (lanes,) = every = host.call(open_raw_lanes, sockets)
    stack.callback(close_lanes, every)
    assert (len(lanes.sockets), lanes.n_ports) == (LANES, 1)
    for lane in lanes.sockets:
        lane.sendto(bytes(INNER), (str(PEER), 0))
        outer = IP(peer.recv(65_535))
        assert (outer.src, outer.proto, outer.flags.DF, bytes(outer.payload)) == (str(HERE), 4, True, bytes(INNER))
    # One line of heading, the peer's socket and the worker's: the kernel looks through all that are listed.
    assert len(host.call(_receivers)) == 1 + 2


def _receivers() -> list[str]:
    return Path("/proc/thread-self/net/raw").read_text().splitlines()


def test_a_lane_learns_of_a_narrow_path_as_the_workers_socket_does(host: OneHost, stack: ExitStack) -> None:
    host.ip("link add eth0 type veth peer name far0", "link set eth0 up mtu 1400", "link set far0 up")
    host.ip("address add 192.0.2.1/24 dev eth0")
    sockets = opened(host, stack, 1, IPv4Address("192.0.2.1"))
    (lanes,) = every = host.call(open_raw_lanes, sockets)
    stack.callback(close_lanes, every)
    for lane in (lanes.sockets[0], lanes.sockets[-1]):
        assert lane.sendto(bytes(1_380), ("192.0.2.2", 0)) == 1_380
        with pytest.raises(OSError) as refused:
            lane.sendto(bytes(1_381), ("192.0.2.2", 0))
        assert refused.value.errno == errno.EMSGSIZE


def test_the_buffers_are_those_of_udp(host: OneHost, stack: ExitStack) -> None:
    (raw,) = opened(host, stack)
    assert granted_buffers(raw).receive_bytes == BUFFER_BYTES


def test_nobody_is_told_that_there_is_no_ipip_while_a_socket_is_open(host: OneHost, stack: ExitStack) -> None:
    peer = foreign(host, stack, str(PEER))
    errors = stack.enter_context(host.call(socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
    with opened(host, stack)[0] as raw:
        peer.sendto(bytes(INNER), (str(HERE), 0))
        assert IP(raw.recv(65_535)).src == str(PEER)
        assert drained(errors) == []
    peer.sendto(bytes(INNER), (str(HERE), 0))
    error = IP(errors.recv(65_535))
    assert (error[ICMP].type, error[ICMP].code, error.dst) == (3, 2, str(PEER))  # RFC 792: protocol unreachable


def test_an_error_from_one_peer_does_not_fail_the_next_packet_to_another(host: OneHost, stack: ExitStack) -> None:
    (raw,) = opened(host, stack)
    (lanes,) = every = host.call(open_raw_lanes, [raw])
    stack.callback(close_lanes, every)
    for lane in lanes.sockets[:2]:
        for _ in range(3):  # nobody receives at 127.0.0.9 but through 127.0.0.1's socket, which is bound elsewhere
            assert lane.sendto(bytes(INNER), ("127.0.0.9", 0)) == len(INNER)


def test_another_programs_socket_is_named(host: OneHost, stack: ExitStack, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        foreign(host, stack, "127.0.0.9")
        opened(host, stack)[0].close()
        assert caplog.messages == []
        foreign(host, stack, "0.0.0.0")
        opened(host, stack)
    assert caplog.messages == [
        "another program has a raw socket for IPIP at 127.0.0.1, too, and gets what peers send: `ss -wanp` names it"
    ]


def test_an_address_that_the_host_does_not_have_is_one_line(host: OneHost) -> None:
    with pytest.raises(FlannelError, match=r"^cannot bind to 192\.0\.2\.9: this host does not have that address$"):
        host.call(open_raw_sockets, IPv4Address("192.0.2.9"), 1)


def test_only_sockets_like_ours_are_taken_over(host: OneHost, stack: ExitStack) -> None:
    ours = opened(host, stack)
    check_raw_sockets(ours, HERE)
    with pytest.raises(FlannelError, match=r"is a SOCK_RAW of protocol 4 at 127\.0\.0\.1, not one for IPIP at 127"):
        check_raw_sockets(ours, PEER)
    with pytest.raises(FlannelError, match="is a SOCK_DGRAM of protocol"):
        check_raw_sockets([stack.enter_context(host.udp("127.0.0.1"))], HERE)
