"""Hearing of changes to the kernel's rules as they happen: nftables' multicast group of netlink.

nft and the nft-backed iptables both show up there; iptables-legacy tells nobody, and is looked at now and then instead.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from flannel_udp.errors import FlannelError
from flannel_udp.host.listener import Listener, open_groups

logger = logging.getLogger(__name__)

# linux/netlink.h, linux/netfilter/nfnetlink.h
_NETLINK_NETFILTER = 12
_NFNLGRP_NFTABLES = 7


@contextmanager
def on_change(needles: Sequence[bytes], changed: Callable[[], None]) -> Iterator[None]:
    """Call `changed` inside the block whenever a message about rules contains one of the `needles`, or some were lost.

    Where the kernel offers no such messages, that is said once and nothing is called.
    """
    try:
        netlink = open_groups(_NETLINK_NETFILTER, (_NFNLGRP_NFTABLES,))
        listener = Listener(netlink, lambda messages: any(needle in messages for needle in needles), changed)
    except FlannelError as error:
        logger.info("the kernel does not report changes of firewall rules (%s): they are only checked", error)
        yield
        return
    try:
        yield
    finally:
        listener.close()
