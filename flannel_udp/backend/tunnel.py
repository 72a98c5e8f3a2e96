"""flannel0 on this host: address, MTU, link and route as flannel has them, and put right when somebody changes them.

For every backend whose packets pass our own packet path: they all come from a TUN device and go to it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from ipaddress import IPv4Network
from typing import Protocol

from flannel_udp.host import netlink
from flannel_udp.host.monitor import Interest
from flannel_udp.host.repair import TunnelShape, differences

logger = logging.getLogger(__name__)

REPAIRS = ("link", "address", "mtu", "route", "tunnel")
"""What is counted: link, address, MTU, route put right; the device made anew."""


class OpenDevice(Protocol):
    """An open TUN device."""

    name: str
    index: int


class DeviceOwner(Protocol):
    """Who has the device open: the dataplane."""

    @property
    def tunnel(self) -> OpenDevice:
        """The device in use."""
        ...

    @property
    def tunnel_lost(self) -> bool:
        """Whether it can be read no more."""
        ...

    def reopen_tunnel(self) -> None:
        """Open another device in its place. Raises `FlannelError`; nothing has changed then."""
        ...


class TunnelKeeper:
    """Gives the device of `owner` its shape for the subnet that `hold` says, and keeps it; MTUs are in bytes.

    `repairs` is where what was put right is counted.
    """

    def __init__(self, owner: DeviceOwner, overlay: IPv4Network, queue_packets: int, repairs: Counter[str]) -> None:
        self._owner = owner
        self._repairs = repairs
        self._overlay = overlay
        self._queue_packets = queue_packets
        self._subnet: IPv4Network | None = None  # the device has its first address
        self._shaped: int | None = None  # index of the device that was given its shape
        self._mtu_said = False  # that the device's follows the interface's is in the log already

    def mtu_follows(self) -> None:
        """Take note that somebody else has logged the MTU that the next `repair` gives the device."""
        self._mtu_said = True

    async def hold(self, subnet: IPv4Network, mtu: int) -> None:
        """Shape the device for this subnet. Raises `FlannelError`."""
        self._subnet, self._shaped = subnet, None
        # It may be gone without a data thread having met that: before the first one runs, or in another agent.
        state = await asyncio.to_thread(netlink.link_state, self._owner.tunnel.index)
        if state is None or self._owner.tunnel_lost:
            self._reopen()
        await self._shape(subnet, mtu)

    def interest(self) -> Interest:
        """Return which news concern the device: those of itself, and of routes as wide as the overlay's."""
        return Interest({self._owner.tunnel.index}, {self._overlay.prefixlen})

    async def repair(self, mtu: int) -> None:
        """Put right what is not as it should be. Raises `FlannelError`."""
        link, routed = await asyncio.to_thread(netlink.tunnel_state, self._owner.tunnel.index, self._overlay)
        if link is None or self._owner.tunnel_lost:
            self._reopen()
        elif link.name != self._owner.tunnel.name:
            logger.info("%s is called %s now", self._owner.tunnel.name, link.name)
            self._owner.tunnel.name = link.name
        if self._subnet is None:
            return
        if link is None or self._shaped != self._owner.tunnel.index:
            await self._shape(self._subnet, mtu)
            return
        shape = TunnelShape(self._subnet.network_address, self._overlay, mtu)
        needed = differences(shape, link, routed)
        if not needed:
            return
        await asyncio.to_thread(netlink.repair_tunnel, link.index, shape, needed)
        self._repairs.update(needed)
        unsaid = [what for what in needed if what != "mtu" or not self._mtu_said]
        self._mtu_said = False
        if unsaid:
            logger.info("put right on %s: %s", link.name, ", ".join(unsaid))

    def _reopen(self) -> None:
        former = self._owner.tunnel.name
        self._owner.reopen_tunnel()
        self._repairs["tunnel"] += 1
        name = self._owner.tunnel.name
        logger.info("%s was deleted or broke: made %s anew", former, "it" if name == former else name)

    async def _shape(self, subnet: IPv4Network, mtu: int) -> None:
        tunnel, address = self._owner.tunnel, subnet.network_address
        await asyncio.to_thread(netlink.configure_tunnel, tunnel.name, address, self._overlay, mtu, self._queue_packets)
        self._shaped = tunnel.index
