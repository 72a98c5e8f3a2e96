"""flannel0 on this host: addresses, MTU, link and routes as flannel has them, put right when somebody changes them.

For every backend whose packets pass our own packet path: they all come from a TUN device and go to it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol

from flannel_udp.errors import FlannelError
from flannel_udp.host import netlink
from flannel_udp.host.monitor import Interest
from flannel_udp.host.repair import Fault, LinkState, Paces, Standing, TunnelEnd, TunnelShape, differences
from flannel_udp.model import Prefix, Subnet

logger = logging.getLogger(__name__)

REPAIRS = ("link", "address", "mtu", "ipv6", "route", "tunnel")
"""What is counted: link, address, MTU, no IPv6 address, route put right; the device made anew."""
NICETIES = frozenset({"mtu", "ipv6"})
"""Without these traffic passes, if not all of it: they are no reason not to be ready."""
RETRY_S = 2.0
"""How long after the kernel has refused something it is asked again, unless it reports a change before."""
_LOST = Fault("tunnel")


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

    `overlays` are the networks, one a family, that are routed to it; `repairs` is where what was put right is counted.
    """

    def __init__(
        self, owner: DeviceOwner, overlays: Sequence[Prefix], queue_packets: int, repairs: Counter[str]
    ) -> None:
        self._owner = owner
        self._repairs = repairs
        self._overlays = overlays
        self._queue_packets = queue_packets
        self._ends: tuple[TunnelEnd, ...] = ()  # the device has the first address of each family's subnet
        self._shaped: int | None = None  # index of the device that was given its shape
        self._mtu_said = False  # that the device's follows the interface's is in the log already
        self._paces = Paces()

    def carry(self, overlays: Sequence[Prefix]) -> None:
        """Have these networks routed to the device from the next `hold` on."""
        self._overlays = overlays

    def mtu_follows(self) -> None:
        """Take note that somebody else has logged the MTU that the next `repair` gives the device."""
        self._mtu_said = True

    async def hold(self, subnet: Subnet, mtu: int) -> None:
        """Shape the device for this subnet. Raises `FlannelError`."""
        parts = ((subnet.of(overlay.version), overlay) for overlay in self._overlays)
        self._ends = tuple(TunnelEnd(part.network_address, overlay) for part, overlay in parts if part is not None)
        self._shaped = None
        # It may be gone without a data thread having met that: before the first one runs, or in another agent.
        state, _ = await self._ask()
        if state is None or self._owner.tunnel_lost:
            self._reopen()
        await self._shape(mtu)

    def interest(self) -> Interest:
        """Return which news concern the device: those of itself, and of routes as wide as the overlays'."""
        return Interest({self._owner.tunnel.index}, {overlay.prefixlen for overlay in self._overlays})

    async def repair(self, mtu: int) -> Standing:
        """Put right what is not as it should be, each thing by itself. Raises `FlannelError`."""
        link, routed = await self._ask()
        lost = link is None or self._owner.tunnel_lost
        if link is not None and link.name != self._owner.tunnel.name:
            logger.info("%s is called %s now", self._owner.tunnel.name, link.name)
            self._owner.tunnel.name = link.name
        wrong = [_LOST] if lost else self._differences(link, routed, mtu)
        now_s = time.monotonic()
        self._paces.looked(self._undone(wrong), now_s)
        failed: dict[Fault, str] = {}
        made: list[Fault] = []
        for fault in wrong:
            if not self._paces.due(fault, now_s):
                continue
            try:
                await self._put_right(fault, mtu)
            except FlannelError as error:
                failed[fault] = str(error)
                continue
            made.append(fault)
            if self._undone([fault]) and self._paces.made(fault, now_s):
                logger.warning(
                    "somebody undoes our repairs again and again, they become rarer from now on: %s", fault.what
                )
        self._tell(made)
        gone = lost and _LOST not in made
        if self._ends and not gone and self._shaped != self._owner.tunnel.index:
            try:
                await self._shape(mtu)
            except FlannelError as error:
                failed[_LOST] = str(error)
        return self._standing(failed, mtu)

    async def _ask(self) -> tuple[LinkState | None, frozenset[Prefix]]:
        networks = [end.network for end in self._ends]
        return await asyncio.to_thread(netlink.tunnel_state, self._owner.tunnel.index, networks)

    def _differences(self, link: LinkState | None, routed: frozenset[Prefix], mtu: int) -> list[Fault]:
        if link is None or not self._ends or self._shaped != link.index:
            return []
        return differences(TunnelShape(self._ends, mtu), link, routed)

    def _undone(self, wrong: Sequence[Fault]) -> list[Fault]:
        """Leave out the MTU where it is another one that is wanted: nobody has changed what was right."""
        return [fault for fault in wrong if fault.what != "mtu" or not self._mtu_said]

    async def _put_right(self, fault: Fault, mtu: int) -> None:
        if fault == _LOST:
            self._reopen()
            return
        await asyncio.to_thread(netlink.repair_tunnel, self._owner.tunnel.index, mtu, fault)
        self._repairs[fault.what] += 1

    def _tell(self, made: Sequence[Fault]) -> None:
        unsaid = [fault for fault in self._undone(made) if fault != _LOST]
        if made:
            self._mtu_said = False
        if unsaid:
            said = dict.fromkeys(fault.what for fault in unsaid)
            logger.info("put right on %s: %s", self._owner.tunnel.name, ", ".join(said))

    def _standing(self, failed: Mapping[Fault, str], mtu: int) -> Standing:
        """Say what is still wrong, or does not stay right."""
        name = self._owner.tunnel.name
        contested = {
            _LOST: f"{name} does not stay, somebody deletes it: `ip -ts monitor link` shows when",
            Fault("link"): f"{name} does not stay up: `ip -ts monitor link` shows when",
            Fault("mtu"): f"the MTU of {name} does not stay at {mtu}: `ip -ts monitor link` shows when",
            Fault("ipv6"): f"{name} does not stay without IPv6 addresses: `ip -ts monitor address` shows when",
        }
        for end in self._ends:
            whose = "its address" if len(self._ends) == 1 else f"its address {end.address}"
            contested[Fault("address", end)] = f"{name} does not keep {whose}: `ip -ts monitor address` shows when"
            contested[Fault("route", end)] = (
                f"the route {end.network} dev {name} does not stay: `ip -ts monitor route` shows what comes"
            )
        waits = [self._paces.again_s(time.monotonic()), RETRY_S if failed else None]
        found = {**failed, **{fault: text for fault, text in contested.items() if self._paces.contested(fault)}}
        hit = {fault.end for fault in found if fault.end is not None}
        # What one of two families lacks stops only that one.
        stops_all = [
            fault
            for fault in found
            if (fault.end is None or len(hit) == len(self._ends)) and fault.what not in NICETIES
        ]
        return Standing(
            obstacles=tuple(dict.fromkeys(text for fault, text in found.items() if fault in stops_all)),
            problems=tuple(dict.fromkeys(text for fault, text in found.items() if fault not in stops_all)),
            again_s=min((wait_s for wait_s in waits if wait_s is not None), default=None),
        )

    def _reopen(self) -> None:
        former = self._owner.tunnel.name
        self._owner.reopen_tunnel()
        self._repairs["tunnel"] += 1
        name = self._owner.tunnel.name
        logger.info("%s was deleted or broke: made %s anew", former, "it" if name == former else name)

    async def _shape(self, mtu: int) -> None:
        tunnel, shape = self._owner.tunnel, TunnelShape(self._ends, mtu)
        await asyncio.to_thread(netlink.configure_tunnel, tunnel.name, shape, self._queue_packets)
        self._shaped = tunnel.index
