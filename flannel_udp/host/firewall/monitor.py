"""Hearing of changes to the kernel's rules as they happen: nftables' multicast group of netlink.

nft and the nft-backed iptables both show up there; iptables-legacy tells nobody, and is looked at now and then instead.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

logger = logging.getLogger(__name__)

# linux/netlink.h, linux/netfilter/nfnetlink.h
_NETLINK_NETFILTER = 12
_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP = 1
_NETLINK_NO_ENOBUFS = 5
_NFNLGRP_NFTABLES = 7

_DATAGRAM_MAX_BYTES = 65_536
_DATAGRAMS_A_TURN = 100  # the loop has other things to do


@contextmanager
def on_change(needles: Sequence[bytes], changed: Callable[[], None]) -> Iterator[None]:
    """Call `changed` inside the block whenever a message about rules contains one of the `needles`.

    Where the kernel offers no such messages, that is said once and nothing is called.
    """
    loop = asyncio.get_running_loop()
    try:
        events = _open_events()
    except OSError as error:
        logger.info("the kernel does not report changes of firewall rules (%s): they are only checked", error.strerror)
        yield
        return

    def read() -> None:
        with suppress(BlockingIOError):
            for _ in range(_DATAGRAMS_A_TURN):
                message = events.recv(_DATAGRAM_MAX_BYTES)
                if any(needle in message for needle in needles):
                    changed()

    loop.add_reader(events.fileno(), read)
    try:
        yield
    finally:
        loop.remove_reader(events.fileno())
        events.close()


def _open_events() -> socket.socket:
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    events = socket.socket(socket.AF_NETLINK, kind, _NETLINK_NETFILTER)
    try:
        # Lost messages must not become an error: a descriptor that reported one is not read by uvloop any more. What
        # was lost is found by the next check.
        events.setsockopt(_SOL_NETLINK, _NETLINK_NO_ENOBUFS, 1)
        events.bind((0, 0))  # the kernel chooses the port id; without one nothing is delivered
        events.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _NFNLGRP_NFTABLES)
    except OSError:
        events.close()
        raise
    return events
