"""The monitor on a real netlink socket, beside real changes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

from flannel_udp.host.monitor import Interest, Monitor, open_monitor_socket
from tests.support.labs import NEEDS_NETNS
from tests.support.one_host import OneHost, one_host
from tests.support.patience import PATIENCE_S

pytestmark = NEEDS_NETNS


@pytest.fixture
def host() -> Iterator[OneHost]:
    """A host of which the kernel has no news any more: what is lost is what the test makes."""
    with one_host() as made:
        made.add_link("eth0", 42)
        yield made


async def test_a_flood_that_the_socket_cannot_hold_means_a_look_and_no_end(host: OneHost) -> None:
    netlink = host.call(open_monitor_socket)
    netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    looks = asyncio.Event()
    monitor = Monitor(netlink, looks.set)
    try:
        monitor.interest = Interest(frozenset({999_999}), frozenset({13}))  # nothing of what follows
        host.ip("addr add 198.51.100.1/32 dev eth0")
        await asyncio.sleep(0.1)
        assert not looks.is_set()
        # On the loop's own thread, so that nothing is read meanwhile and messages get lost.
        host.ip(*(f"addr add 198.51.100.{i}/32 dev eth0" for i in range(2, 200)))
        await asyncio.wait_for(looks.wait(), PATIENCE_S)
        looks.clear()
        monitor.interest = None
        host.ip("addr add 203.0.113.1/32 dev eth0")
        await asyncio.wait_for(looks.wait(), PATIENCE_S)
    finally:
        monitor.close()
