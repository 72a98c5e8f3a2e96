"""The lanes by which packets leave: sockets of one port that never receive."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv6Address

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.packet import Packet

from flannel_udp.dataplane.lanes import LANES, close_lanes, open_lanes
from flannel_udp.dataplane.offload import SOL_UDP, UDP_GRO
from flannel_udp.dataplane.underlay import close_sockets, open_sockets
from flannel_udp.errors import FlannelError
from flannel_udp.model import Address
from tests.support.agents import wait_for
from tests.support.engine_rig import EngineRig, small_table

HERE, HERE6 = IPv4Address("127.0.0.1"), IPv6Address("::1")
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
    assert {len(lanes.sockets) for lanes in opened} == {LANES // workers if workers < 3 else 16}
    for sender in SENDERS:
        for _ in range(EACH):  # from another port each time
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
                peer.bind((sender, 0))
                peer.sendto(b"for us", (str(HERE), port))
    by_worker: list[list[str]] = [[] for _ in sockets]

    def all_have_come() -> bool:  # a busy kernel leaves what was sent on the loopback interface to a thread
        for had, more in zip(by_worker, received(sockets), strict=True):
            had.extend(more)
        return sum(map(len, by_worker)) >= EACH * len(SENDERS)

    wait_for("all have come", all_have_come)
    assert sorted(sender for senders in by_worker for sender in senders) == sorted(SENDERS * EACH)
    assert all(senders for senders in by_worker)
    assert sum(len(set(senders)) for senders in by_worker) == len(SENDERS)
    assert not any(received([lane for lanes in opened for lane in lanes.sockets if lane not in sockets]))


@pytest.mark.parametrize("source_ports", [0, 16])
@pytest.mark.parametrize("workers", [LANES, LANES + 1, 256])
def test_workers_as_many_as_lanes_or_more_have_one_each(workers: int, source_ports: int, stack: ExitStack) -> None:
    sockets = open_sockets(HERE, free_port(), workers)
    stack.callback(close_sockets, sockets)
    opened = open_lanes(sockets, udp_gro=True, source_ports=source_ports)
    stack.callback(close_lanes, opened)
    assert [(len(lanes.sockets), lanes.n_ports) for lanes in opened] == [(1, 1)] * workers


def test_the_port_of_another_agent_is_in_use_although_it_may_be_shared(stack: ExitStack) -> None:
    port = free_port()
    stack.callback(close_sockets, open_sockets(HERE, port, 1))
    with pytest.raises(FlannelError, match="is in use"):
        open_sockets(HERE, port, 1)


def test_a_socket_that_shares_its_port_with_nobody_has_no_lanes_and_is_as_it_was(stack: ExitStack) -> None:
    udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    udp.bind((str(HERE), 0))
    (lanes,) = open_lanes([udp], udp_gro=False)
    assert (lanes.sockets, lanes.n_ports) == ([udp], 1)


def test_what_goes_out_by_any_lane_comes_from_the_one_port(stack: ExitStack) -> None:
    with EngineRig(small_table(), lanes=True) as rig:
        for peer in (2, 3):
            rig.from_tun(bytes(IP(src="10.1.1.5", dst=f"10.1.{peer}.7") / UDP()))
        rig.poll()
        for udp in rig.peers.values():
            assert udp.recvfrom(100)[1] == (str(HERE), rig.port)


@pytest.mark.parametrize("n", [3, 62, 65, 100])
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
    further = [lane for lane in lanes.sockets if lane not in sockets]
    assert {lane.getsockopt(SOL_UDP, UDP_GRO) for lane in further} == {int(udp_gro)}


# Source ports of the kernel's choice


@pytest.mark.parametrize(("workers", "asked", "got"), [(1, 16, 16), (2, 32, 32), (8, 16, 8)])
@pytest.mark.parametrize("here", [HERE, HERE6], ids=["IPv4", "IPv6"])
def test_each_worker_has_as_many_source_ports_as_asked_for_and_it_has_lanes(
    here: Address, workers: int, asked: int, got: int, stack: ExitStack
) -> None:
    sockets = open_sockets(here, free_port(), workers)
    stack.callback(close_sockets, sockets)
    opened = open_lanes(sockets, udp_gro=True, source_ports=asked)
    stack.callback(close_lanes, opened)
    for lanes in opened:
        ports = [lane.getsockname()[1] for lane in lanes.sockets]
        assert (lanes.n_ports, len(set(ports)), len(ports)) == (got, got, LANES // workers)
        assert ports == ports[:got] * (len(ports) // got)
    assert len({lane.getsockname() for lanes in opened for lane in lanes.sockets}) == workers * got


@pytest.mark.parametrize("here", [HERE, HERE6], ids=["IPv4", "IPv6"])
def test_nothing_comes_in_by_a_source_port(here: Address, stack: ExitStack) -> None:
    sockets = open_sockets(here, free_port(), 1)
    stack.callback(close_sockets, sockets)
    opened = open_lanes(sockets, udp_gro=True, source_ports=2)
    stack.callback(close_lanes, opened)
    with socket.socket(sockets[0].family, socket.SOCK_DGRAM) as stranger:
        for lane in opened[0].sockets:
            stranger.sendto(b"hello", lane.getsockname())
    assert received(opened[0].sockets) == [[]] * LANES


def source_ports_of(rig: EngineRig, packets: Sequence[Packet]) -> list[int]:
    """Return the port that each of these left from, to the peer 10.1.2.0/24."""
    found = []
    for packet in packets:
        rig.from_tun(bytes(packet))
        rig.poll()
        found.append(rig.peers["127.0.0.2"].recvfrom(2000)[1][1])
    return found


def test_a_flow_keeps_its_source_port_and_flows_take_all_of_them() -> None:
    flows = [IP(src="10.1.1.5", dst="10.1.2.7") / UDP(sport=1000 + i, dport=53) for i in range(200)]
    with EngineRig(small_table(), source_ports=8) as rig:
        first, again = source_ports_of(rig, flows), source_ports_of(rig, flows)
        assert rig.port not in first
    assert first == again
    assert len(set(first)) == 8
    assert max(first.count(port) for port in set(first)) < 200 // 8 * 2  # near enough to an even share


def test_what_has_no_ports_is_told_by_addresses_and_protocol() -> None:
    fragments = IP(src="10.1.1.5", dst="10.1.2.7", flags="MF") / UDP(sport=7, dport=8) / bytes(64)
    last = IP(src="10.1.1.5", dst="10.1.2.7", frag=9, proto=17) / b"the ports of this are payload"
    short = IP(src="10.1.1.5", dst="10.1.2.7", proto=17) / b"abc"
    pods = [IP(src="10.1.1.5", dst=f"10.1.2.{i}") / ICMP() for i in range(1, 100)]
    with EngineRig(small_table(), source_ports=8) as rig:
        assert len(set(source_ports_of(rig, [fragments, last, short]))) == 1
        assert len(set(source_ports_of(rig, pods))) == 8


@pytest.mark.parametrize(("lanes", "ports"), [(1, 2), (2, 0), (2, 3)])
def test_ports_without_a_lane_each_are_refused(lanes: int, ports: int) -> None:
    with EngineRig(small_table()) as rig, pytest.raises(ValueError, match=r"power of two|needs a lane"):
        rig.engine.attach(rig.tun_fd, rig.udp_fd, lanes=[rig.udp_fd] * lanes, ports=ports)
