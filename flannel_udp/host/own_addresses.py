"""Which addresses are this host's own, so that no other host can be reached by them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Mapping

from flannel_udp.errors import FlannelError
from flannel_udp.host.links import device, stream_addresses
from flannel_udp.host.listener import open_groups
from flannel_udp.host.monitor import Monitor
from flannel_udp.host.route_query import is_local
from flannel_udp.host.rtnetlink import open_rtnetlink
from flannel_udp.model import Address, Prefix, prefix_of

_RTNLGRP_IPV4_IFADDR, _RTNLGRP_IPV6_IFADDR = 5, 9  # linux/rtnetlink.h
LOOK_EVERY_S = 1.0
"""The shortest time between two looks."""


def read_own_addresses() -> dict[Address, str]:
    """Return this host's addresses, and those that its networks have for all of it, each with a clause "is ...".

    IPv6's link-local ones are left out: nobody is reached by them; and those that the kernel does not use, as it asks
    whether another host has them, or one does (RFC 4862 5.4). Blocks for some milliseconds. Raises `FlannelError`.
    """
    own: dict[Address, str] = {}
    with open_rtnetlink("listing the addresses of this host") as netlink:
        everything = [found for version in (4, 6) for found in stream_addresses(netlink, version=version)]
        for found in everything:
            if not found.usable or (found.address.version == 6 and found.address.is_link_local):
                continue
            network = prefix_of(found.address, found.prefix_len)
            if network.prefixlen < network.max_prefixlen - 1:  # RFC 3021, RFC 6164: a link of two has none
                shared, what = _SHARED[network.version](network)
                own.setdefault(shared, f"is the {what} of {network}, which we are in")
            own[found.address] = "is an address of this host" + (f", on {found.label}" if found.label else "")
    return own


def has_come(address: Address) -> bool:
    """Ask the kernel whether an interface that is up, and that packets leave by, has this address.

    Blocks for some milliseconds. Raises `FlannelError`.
    """
    with open_rtnetlink("looking for an address") as netlink:
        if not is_local(netlink, address):  # of 10,000 addresses none is read
            return False
        holders = {item.index for item in stream_addresses(netlink, version=address.version) if item.address == address}
        found = [device(netlink, index) for index in holders]
        return any(link is not None and link.up and link.leads_out for link in found)


_SHARED: Mapping[int, Callable[[Prefix], tuple[Address, str]]] = {
    4: lambda network: (network.broadcast_address, "broadcast address"),
    6: lambda network: (network.network_address, "routers' anycast address"),  # RFC 4291 section 2.6.1
}
"""By IP version: the address that is no single host's."""


class OwnAddresses:
    """Awaits `tell(addresses)`, see `read_own_addresses`, with `look` and whenever they have changed during `run`."""

    def __init__(self, tell: Callable[[Mapping[Address, str]], Awaitable[None]]) -> None:
        self._tell = tell
        self._known: Mapping[Address, str] = {}

    async def look(self) -> None:
        """Look now. What cannot be read is taken as unchanged."""
        with contextlib.suppress(FlannelError):
            addresses = await asyncio.to_thread(read_own_addresses)
            if addresses != self._known:
                self._known = addresses
                await self._tell(addresses)

    async def run(self) -> None:
        """Look again whenever the kernel reports a change, until cancelled."""
        changed = asyncio.Event()
        monitor = Monitor(open_groups(socket.NETLINK_ROUTE, (_RTNLGRP_IPV4_IFADDR, _RTNLGRP_IPV6_IFADDR)), changed.set)
        try:
            while True:
                await self.look()  # first of all: what changed before we listened went by unseen
                await asyncio.sleep(LOOK_EVERY_S)
                await changed.wait()
                changed.clear()
        finally:
            monitor.close()
