"""flannel0 and the sockets are replaced whole or not at all, whatever somebody does to them meanwhile."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from flannel_udp.dataplane.dataplane import Dataplane
from flannel_udp.dataplane.offload import TUNSETOFFLOAD
from flannel_udp.dataplane.tunnel import TUNGETIFF
from flannel_udp.errors import FlannelError
from flannel_udp.lab.netns import call_inside
from flannel_udp.options import DataplaneOptions
from tests.support.labs import NEEDS_NETNS, empty_namespace
from tests.support.refusals import Refusal, refused

pytestmark = NEEDS_NETNS

LOOPBACK, PORT = IPv4Address("127.0.0.1"), 8285
# What a device that was deleted answers to every ioctl: to the first one, and to the one that sets its offloads.
DELETED = [Refusal("ioctl", errno.EBADFD, {1: request}) for request in (TUNGETIFF, TUNSETOFFLOAD)]
NO_DESCRIPTOR = Refusal("epoll_create1", errno.EMFILE)


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
        dataplane = Dataplane(LOOPBACK, PORT, DataplaneOptions(workers=2), lambda: None)

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
