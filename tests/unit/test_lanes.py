"""The lanes by which packets leave: sockets of one port that never receive."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from ipaddress import IPv4Address

import pytest
from scapy.layers.inet import IP, UDP

from flannel_udp.dataplane.lanes import LANES, close_lanes, open_lanes
from flannel_udp.dataplane.offload import SOL_UDP, UDP_GRO
from flannel_udp.dataplane.underlay import close_sockets, open_sockets
from flannel_udp.errors import FlannelError
from tests.support.engine_rig import EngineRig, small_table

HERE = IPv4Address("127.0.0.1")
SENDERS = [f"127.0.0.{i}" for i in range(2, 30)]
EACH = 5


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind((str(HERE), 0))
        return int(udp.getsockname()[1])


def received(sockets: Sequence[socket.socket]) -> list[list[str]]:
    """Return the senders of what each socket has received."""
    found = []
    for udp in sockets:
        senders = []
        while True:
            try:
                senders.append(udp.recvfrom(100)[1][0])
            except BlockingIOError:
                break
        found.append(senders)
    return found


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_only_the_workers_sockets_receive_each_from_whole_peers(workers: int, stack: ExitStack) -> None:
    port = free_port()
    sockets = open_sockets(HERE, port, workers)
    stack.callback(close_sockets, sockets)
    opened = open_lanes(sockets, udp_gro=True)
    stack.callback(close_lanes, opened)
    assert {len(lanes) for lanes in opened} == {LANES // workers - 1 if workers < 3 else 15}
    for sender in SENDERS:
        for _ in range(EACH):  # from another port each time
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
                peer.bind((sender, 0))
                peer.sendto(b"for us", (str(HERE), port))
    by_worker = received(sockets)
    assert sorted(sender for senders in by_worker for sender in senders) == sorted(SENDERS * EACH)
    assert all(senders for senders in by_worker)
    assert sum(len(set(senders)) for senders in by_worker) == len(SENDERS)
    assert not any(received([lane for lanes in opened for lane in lanes]))


def test_the_port_of_another_agent_is_in_use_although_it_may_be_shared(stack: ExitStack) -> None:
    port = free_port()
    stack.callback(close_sockets, open_sockets(HERE, port, 1))
    with pytest.raises(FlannelError, match="is in use"):
        open_sockets(HERE, port, 1)


def test_a_socket_that_shares_its_port_with_nobody_has_no_lanes_and_is_as_it_was(stack: ExitStack) -> None:
    udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    udp.bind((str(HERE), 0))
    assert open_lanes([udp], udp_gro=False) == [[]]


def test_what_goes_out_by_any_lane_comes_from_the_one_port(stack: ExitStack) -> None:
    with EngineRig(small_table(), lanes=True) as rig:
        for peer in (2, 3):
            rig.from_tun(bytes(IP(src="10.1.1.5", dst=f"10.1.{peer}.7") / UDP()))
        rig.poll()
        for udp in rig.peers.values():
            assert udp.recvfrom(100)[1] == (str(HERE), rig.port)


@pytest.mark.parametrize("n", [2, 62, 64, 100])
def test_lanes_that_are_no_power_of_two_are_refused(n: int) -> None:
    with EngineRig(small_table()) as rig, pytest.raises(ValueError, match="power of two"):
        rig.engine.attach(rig.tun_fd, rig.udp_fd, lanes=[rig.udp_fd] * n)


@pytest.mark.parametrize("udp_gro", [False, True])
def test_the_kernel_joins_datagrams_whichever_socket_of_the_group_it_asks(udp_gro: bool, stack: ExitStack) -> None:
    """Before it joins them it asks one of the group, by the hash of the addresses, and runs no program."""
    sockets = open_sockets(HERE, free_port(), 1)
    stack.callback(close_sockets, sockets)
    (lanes,) = opened = open_lanes(sockets, udp_gro=udp_gro)
    stack.callback(close_lanes, opened)
    assert {lane.getsockopt(SOL_UDP, UDP_GRO) for lane in lanes} == {int(udp_gro)}
