"""Keeps the host's side of the tunnel right while the agent runs, whoever changes it.

Three things are looked at whenever the kernel reports a change, and put right:

1. the external interface: followed when its address or MTU changes or it goes away; see `Upkeep._follow`
2. flannel0: made anew when it is deleted, its link, address, MTU and route put back; see `Upkeep._put_right`
3. the blackhole route, where one is wanted

Our own changes are reported, too: they lead to one more look, which finds nothing to do.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import Protocol

from flannel_udp.errors import FlannelError
from flannel_udp.host import interface, netlink
from flannel_udp.host.blackhole import keep_blackhole, restore_blackhole
from flannel_udp.host.monitor import Interest, Monitor, open_monitor_socket
from flannel_udp.host.mtu import tunnel_mtu
from flannel_udp.host.netlink import HostState
from flannel_udp.host.repair import REPAIRS, LinkState, Pace, TunnelShape, differences, why_lost
from flannel_udp.model import Interface
from flannel_udp.options import Options

logger = logging.getLogger(__name__)

SETTLE_S = 0.02
"""Changes come in flocks: wait that long for the rest of them."""
LOOK_EVERY_S = 0.2
"""The shortest time between two looks at the host."""
FIRST_RETRY_S, LAST_RETRY_S = 0.5, 10.0


class OpenDevice(Protocol):
    """An open tunnel device."""

    name: str
    index: int


class Descriptors(Protocol):
    """Who has flannel0 and the sockets open: the dataplane. `Upkeep` tells it when to open them anew."""

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

    def rebind(self, address: IPv4Address) -> None:
        """Bind the sockets to another address. Raises `FlannelError`; nothing has changed then."""
        ...


class Upkeep:
    """Watches over `external` and the tunnel device; `set_up` once there is a lease, `run` all the time.

    `mtu_wanted` is Backend.MTU. `news()` is awaited after `external`, `mtu`, `obstacle` or the device has changed.
    """

    def __init__(
        self,
        options: Options,
        external: Interface,
        network: IPv4Network,
        descriptors: Descriptors,
        *,
        mtu_wanted: int | None,
        news: Callable[[], Awaitable[None]],
    ) -> None:
        self.external = external
        self.mtu = tunnel_mtu(external, mtu_wanted)
        """flannel0's, in bytes."""
        self.obstacle: str | None = None
        """Why no traffic can pass just now."""
        self.repairs = dict.fromkeys(REPAIRS, 0)
        """How often what was put right."""
        self._options = options
        self.network = network
        self._mtu_wanted = mtu_wanted
        self._descriptors = descriptors
        self._news = news
        self._external_lost = False
        self._mtu_told = False  # that flannel0's follows is in the log already
        self._untold = False  # there is news that `news` has not been awaited for
        self._subnet: IPv4Network | None = None  # since `set_up`; flannel0 has its first address
        self._shaped: int | None = None  # index of the device that was given its shape
        self._pace = Pace()
        self._woken = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()

    def wake(self) -> None:
        """Have a look soon: something may have changed."""
        self._woken.set()

    async def set_up(self, subnet: IPv4Network) -> None:
        """Set the host up for this subnet, and keep it so. Raises `FlannelError`."""
        async with self._one_at_a_time:
            self._subnet, self._shaped = subnet, None
            # It may be gone without a data thread having met that: before the first one runs, or in another agent.
            index = self._descriptors.tunnel.index
            state = await asyncio.to_thread(netlink.host_state, index, self.network, self.external.index)
            if state.tunnel is None or self._descriptors.tunnel_lost:
                self._reopen_tunnel()
            await self._shape(subnet)
            await asyncio.to_thread(keep_blackhole, self.network, self._blackhole)

    async def run(self) -> None:
        """Keep everything right until cancelled."""
        monitor = Monitor(open_monitor_socket(), self.wake)
        retry_s: float | None = 0.0  # look once at the start: what happened before we listened went by unseen
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(retry_s):  # wait_for loses a cancellation before Python 3.12
                        await self._woken.wait()
                await asyncio.sleep(max(SETTLE_S, self._pace.pause_s(time.monotonic())))
                self._woken.clear()
                async with self._one_at_a_time:
                    retry_s = await self._attempt(monitor, retry_s)
                await asyncio.sleep(LOOK_EVERY_S)
        finally:
            monitor.close()

    async def _attempt(self, monitor: Monitor, retry_s: float | None) -> float | None:
        """Look and act; return after how many seconds to try again if nothing is reported, ``None`` for never."""
        before = sum(self.repairs.values())
        try:
            state = await self._look(monitor)
            obstacle = await self._follow(state.external, monitor)
            await self._put_right(state)
            await self._restore_blackhole()
            retry_s = None
        except FlannelError as failed:
            obstacle = str(failed)
            retry_s = min(2 * (retry_s or FIRST_RETRY_S / 2), LAST_RETRY_S)
        self._note_obstacle(obstacle)
        if self._untold:
            self._untold = False
            await self._news()
        if sum(self.repairs.values()) > before:
            self.wake()  # look again: what changed while we were at it went by unseen
            if self._pace.note(time.monotonic()):
                logger.warning("somebody undoes our repairs again and again: they become rarer from now on")
        return retry_s

    async def _look(self, monitor: Monitor) -> HostState:
        tunnel = self._descriptors.tunnel.index
        # While something is in the way, anything may change that: another interface, a default route.
        routes = {network.prefixlen for network in (self.network, self._blackhole) if network}
        known = Interest({tunnel, self.external.index}, routes)
        monitor.interest = known if self.obstacle is None else None
        return await asyncio.to_thread(netlink.host_state, tunnel, self.network, self.external.index)

    # The external interface

    async def _follow(self, found: LinkState | None, monitor: Monitor) -> str | None:
        """Stay with the interface and the address in use while they are there; else choose again, as at the start.

        Returns why no interface is usable, ``None`` if one is. Raises `FlannelError`.
        """
        why = why_lost(self.external, found)
        if why is None and found is not None:
            self._use(replace(self.external, mtu=found.mtu))
            return None
        self._external_lost = True
        monitor.interest = None
        facts = await asyncio.to_thread(interface.gather, self._options.interface)
        try:
            external = interface.choose(self._options.interface, facts)
        except FlannelError:
            return f"{why}: waiting for it"
        self._use(external)
        return None

    def _use(self, external: Interface) -> None:
        former = self.external
        if self._external_lost and external.address == former.address:
            self.repairs["interface"] += 1
        self._external_lost = False
        if external == former:
            return
        if external.address != former.address:
            self._descriptors.rebind(external.address)
            self.repairs["socket"] += 1
            logger.info(
                "the external address is %s on %s now, it was %s on %s: UDP is bound to it, public IP %s",
                *(external.address, external.name, former.address, former.name, external.public_ip),
            )
        self.external, self._untold = external, True
        if external.mtu != former.mtu:
            self._fit_mtu()

    def _fit_mtu(self) -> None:
        """Let flannel0's MTU follow the interface's."""
        try:
            mtu = tunnel_mtu(self.external, self._mtu_wanted)
        except FlannelError as misfit:
            logger.warning("%s; the tunnel keeps its MTU of %d, and what is larger is lost", misfit, self.mtu)
            return
        if mtu != self.mtu:
            logger.info("the MTU of %s is %d now: the tunnel's is %d", self.external.name, self.external.mtu, mtu)
            self.mtu, self._mtu_told = mtu, True

    # flannel0

    async def _put_right(self, state: HostState) -> None:
        """Raises `FlannelError`."""
        if state.tunnel is None or self._descriptors.tunnel_lost:
            self._reopen_tunnel()
        elif state.tunnel.name != self._descriptors.tunnel.name:
            logger.info("%s is called %s now", self._descriptors.tunnel.name, state.tunnel.name)
            self._descriptors.tunnel.name, self._untold = state.tunnel.name, True
        if self._subnet is None:
            return
        if state.tunnel is None or self._shaped != self._descriptors.tunnel.index:
            await self._shape(self._subnet)
            return
        shape = TunnelShape(self._subnet.network_address, self.network, self.mtu)
        needed = differences(shape, state.tunnel, state.routed)
        if not needed:
            return
        await asyncio.to_thread(netlink.repair_tunnel, state.tunnel.index, shape, needed)
        self._untold = True
        for what in needed:
            self.repairs[what] += 1
        untold = [what for what in needed if what != "mtu" or not self._mtu_told]
        self._mtu_told = False
        if untold:
            logger.info("put right on %s: %s", state.tunnel.name, ", ".join(untold))

    def _reopen_tunnel(self) -> None:
        former = self._descriptors.tunnel.name
        self._descriptors.reopen_tunnel()
        self.repairs["tunnel"] += 1
        self._untold = True
        name = self._descriptors.tunnel.name
        logger.info("%s was deleted or broke: made %s anew", former, "it" if name == former else name)

    async def _shape(self, subnet: IPv4Network) -> None:
        tunnel, address = self._descriptors.tunnel, subnet.network_address
        queue_packets = self._options.dataplane.tx_queue_packets
        await asyncio.to_thread(netlink.configure_tunnel, tunnel.name, address, self.network, self.mtu, queue_packets)
        self._shaped, self._untold = tunnel.index, True

    # The blackhole route

    @property
    def _blackhole(self) -> IPv4Network | None:
        """Where it leads to, if one is wanted."""
        return self._subnet if self._options.firewall.ip_blackhole_route else None

    async def _restore_blackhole(self) -> None:
        """Raises `FlannelError`."""
        subnet = self._blackhole
        if subnet is not None and await asyncio.to_thread(restore_blackhole, subnet):
            self.repairs["blackhole"] += 1
            self._untold = True
            logger.info("put right: the blackhole route for %s", subnet)

    # What is said

    def _note_obstacle(self, obstacle: str | None) -> None:
        if obstacle == self.obstacle:
            return
        if obstacle is not None:
            logger.warning("no traffic: %s", obstacle)
        else:
            logger.info("traffic can pass again, through %s", self.external.name)
        self.obstacle, self._untold = obstacle, True
