"""flannel0 and the sockets are replaced whole or not at all, whatever somebody does to them meanwhile."""

from __future__ import annotations

import errno
import itertools
import resource
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from flannel_udp.admin.claims import HostClaims
from flannel_udp.dataplane.dataplane import Dataplane
from flannel_udp.dataplane.lanes import LANE_BYTES, LANES
from flannel_udp.dataplane.tun_requests import TUNGETIFF, TUNSETOFFLOAD
from flannel_udp.errors import FlannelError
from flannel_udp.lab.netns import call_inside
from flannel_udp.options import DataplaneOptions
from tests.support.labs import NEEDS_NETNS, empty_namespace
from tests.support.refusals import NO_THREAD, Refusal, refused

pytestmark = NEEDS_NETNS

LOOPBACK, PORT = IPv4Address("127.0.0.1"), 8285
# What a device that was deleted answers to every ioctl: to the first one, and to the one that sets its offloads.
DELETED = [Refusal("ioctl", errno.EBADFD, {1: request}) for request in (TUNGETIFF, TUNSETOFFLOAD)]
NO_DESCRIPTOR = Refusal("epoll_create1", errno.EMFILE)
# What an event loop asks for, and our own code does not.
NO_LOOP = Refusal("eventfd2", errno.EMFILE)


@pytest.fixture
def namespace() -> Iterator[str]:
    with empty_namespace("ip link set lo up") as name:
        yield name


def n_open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize(
    ("refusal", "running"), [*itertools.product(DELETED, [False, True]), (NO_DESCRIPTOR, False)], ids=str
)
def test_a_device_that_cannot_be_used_leaves_the_former_one_in_its_place(
    namespace: str, refusal: Refusal, running: bool
) -> None:
    def check() -> None:
        dataplane = Dataplane([LOOPBACK], PORT, DataplaneOptions(workers=2), lambda: None)

        def state() -> tuple[object, ...]:
            return dataplane.tunnel, dataplane.generation, dict(dataplane.descriptors()), dataplane.offload, n_open()

        def reopen() -> None:
            with pytest.raises(FlannelError):
                dataplane.reopen_tunnel()

        try:
            if running:
                dataplane.start()
            former = state()
            refused([refusal], reopen)
            if not running:  # a thread that starts again makes another loop, which has descriptors, too
                assert state() == former
            assert state()[:-1] == former[:-1]
            dataplane.reopen_tunnel()
            assert dataplane.generation == (1, False)
        finally:
            dataplane.close()

    call_inside(namespace, check)


ELSEWHERE = IPv4Address("127.0.0.2")


@pytest.mark.parametrize("why", ["the port is in use", "no descriptor is left"])
@pytest.mark.parametrize("workers", [1, 2])
def test_sockets_that_cannot_be_used_leave_the_former_ones_in_their_place(
    namespace: str, why: str, workers: int
) -> None:
    def check() -> None:
        claims = HostClaims()
        dataplane = Dataplane([LOOPBACK], PORT, DataplaneOptions(workers=workers), lambda: None, claims=claims)

        def state() -> tuple[object, ...]:
            facts = dataplane.generation, dict(dataplane.descriptors()), dataplane.offload, dataplane.socket_buffers
            return *facts, claims.descriptors(), n_open()

        def rebind() -> None:
            with pytest.raises(FlannelError):
                dataplane.rebind(ELSEWHERE)

        try:
            former = state()
            if why == "the port is in use":
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
                    other.bind((str(ELSEWHERE), PORT))
                    rebind()
            else:
                refused([NO_DESCRIPTOR], rebind)
            assert state() == former
            dataplane.rebind(ELSEWHERE)
            assert dataplane.generation == (1, False)
            assert "UDP port 8285 on 127.0.0.2" in claims.descriptors()
            assert n_open() == former[-1]
        finally:
            dataplane.close()
            claims.close()

    call_inside(namespace, check)


def test_lanes_of_which_some_cannot_be_opened_are_none_and_packets_leave_all_the_same(namespace: str) -> None:
    def check() -> None:
        dataplane = Dataplane([LOOPBACK], PORT, DataplaneOptions(), lambda: None)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            before = n_open()
            resource.setrlimit(resource.RLIMIT_NOFILE, (before + 20, limits[1]))
            try:
                dataplane.rebind(ELSEWHERE)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            assert before - n_open() == LANES - 1
            assert dataplane.socket_buffers.send_bytes > LANE_BYTES
            dataplane.rebind(LOOPBACK)
            assert n_open() == before
            assert dataplane.socket_buffers.send_bytes == LANE_BYTES
        finally:
            dataplane.close()

    call_inside(namespace, check)


@pytest.mark.parametrize("lacking", [NO_LOOP, NO_THREAD])
def test_data_threads_start_again_though_no_descriptor_or_thread_is_left(lacking: Refusal, namespace: str) -> None:
    def check() -> None:
        dataplane = Dataplane([LOOPBACK], PORT, DataplaneOptions(workers=2), lambda: None)
        try:
            dataplane.start()
            refused([lacking], dataplane.reopen_tunnel)
            assert dataplane.generation == (1, False)
            dataplane.stop()
            refused([lacking], dataplane.start)
        finally:
            dataplane.close()

    call_inside(namespace, check)


@pytest.mark.parametrize(
    ("lacking", "why"),
    [(NO_LOOP, "Too many open files$"), (NO_THREAD, "can't start new thread: see TasksMax= of the unit, pids.max of ")],
)
def test_data_threads_that_cannot_start_are_one_clear_line(lacking: Refusal, why: str, namespace: str) -> None:
    def check() -> None:
        dataplane = Dataplane([LOOPBACK], PORT, DataplaneOptions(), lambda: None)

        def start() -> None:
            with pytest.raises(FlannelError, match=f"^cannot start a data thread: {why}"):
                dataplane.start()

        try:
            refused([lacking], start)
            dataplane.start()
        finally:
            dataplane.close()

    call_inside(namespace, check)
