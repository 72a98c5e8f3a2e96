"""Keeps the host's side of the network right while the agent runs, whoever changes it.

Three things are looked at whenever the kernel reports a change, and put right:

1. the external interface: followed when its address or MTU changes or it goes away; see `Upkeep._follow`
2. what the backend has on this host, its device, say: see `KeptNetwork.repair`
3. the blackhole route, where one is wanted

Our own changes are reported, too: they lead to one more look, which finds nothing to do.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Network
from typing import Protocol

from flannel_udp.errors import FlannelError
from flannel_udp.host import interface, netlink
from flannel_udp.host.blackhole import keep_blackhole, restore_blackhole
from flannel_udp.host.monitor import Interest, Monitor, open_monitor_socket
from flannel_udp.host.repair import LinkState, Pace, why_lost
from flannel_udp.model import Interface, LeaseAttrs
from flannel_udp.options import Options

logger = logging.getLogger(__name__)

SETTLE_S = 0.02
"""Changes come in flocks: wait that long for the rest of them."""
LOOK_EVERY_S = 0.2
"""The shortest time between two looks at the host."""
FIRST_RETRY_S, LAST_RETRY_S = 0.5, 10.0
HOST_REPAIRS = ("blackhole", "interface")
"""What is counted of the host itself: the blackhole route put back, the external interface usable again."""


class KeptNetwork(Protocol):
    """What a backend has on this host, as far as it has to be kept right."""

    mtu: int
    """The overlay's, in bytes."""
    repairs: Counter[str]
    """How often what of it was put right; what never was is there with 0."""

    @property
    def look_every_s(self) -> float | None:
        """How often to look although the kernel has reported nothing; ``None``: never."""
        ...

    async def hold(self, subnet: IPv4Network, former: LeaseAttrs | None) -> None:
        """Set the host up for this subnet, and keep it so. Raises `FlannelError`.

        `former` is what our entry said before this run wrote it: with which backend the host ran last, if it did.
        """
        ...

    def interest(self) -> Interest:
        """Return which news of the kernel concern it."""
        ...

    async def repair(self) -> None:
        """Look, and put right what is not as it should be. Raises `FlannelError`."""
        ...

    async def follow(self, external: Interface) -> None:
        """Go on through that interface, its address, MTU and public IP. Raises `FlannelError`; nothing changed then."""
        ...


class Upkeep:
    """Watches over `external` and what the network has; `set_up` once there is a lease, `run` all the time.

    `news()` is awaited after `external`, the MTU, `obstacle` or the network's device has changed.
    """

    def __init__(
        self,
        options: Options,
        external: Interface,
        overlay: IPv4Network,
        kept: KeptNetwork,
        news: Callable[[], Awaitable[None]],
    ) -> None:
        self.external = external
        self.obstacle: str | None = None
        """Why no traffic can pass just now."""
        self._options = options
        self._overlay = overlay
        self._kept = kept
        self._news = news
        self._repairs = Counter(dict.fromkeys(HOST_REPAIRS, 0))
        self._external_lost = False
        self._untold = False  # there is news that `news` has not been awaited for
        self._subnet: IPv4Network | None = None  # since `set_up`
        self._pace = Pace()
        self._woken = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()

    @property
    def repairs(self) -> dict[str, int]:
        """How often what was put right."""
        return {**self._kept.repairs, **self._repairs}

    def wake(self) -> None:
        """Have a look soon: something may have changed."""
        self._woken.set()

    async def set_up(self, subnet: IPv4Network, former: LeaseAttrs | None) -> None:
        """Set the host up for this subnet, and keep it so, see `KeptNetwork.hold`. Raises `FlannelError`."""
        async with self._one_at_a_time:
            self._subnet = subnet
            await self._kept.hold(subnet, former)
            self._untold = True
            await asyncio.to_thread(keep_blackhole, self._overlay, self._blackhole)

    async def run(self) -> None:
        """Keep everything right until cancelled."""
        monitor = Monitor(open_monitor_socket(), self.wake)
        retry_s: float | None = 0.0  # look once at the start: what happened before we listened went by unseen
        try:
            while True:
                with suppress(TimeoutError):
                    # wait_for loses a cancellation before Python 3.12
                    async with asyncio.timeout(self._kept.look_every_s if retry_s is None else retry_s):
                        await self._woken.wait()
                await asyncio.sleep(max(SETTLE_S, self._pace.pause_s(time.monotonic())))
                self._woken.clear()
                async with self._one_at_a_time:
                    retry_s = await self._attempt(monitor, retry_s)
                await asyncio.sleep(LOOK_EVERY_S)
        finally:
            monitor.close()

    async def _attempt(self, monitor: Monitor, retry_s: float | None) -> float | None:
        """Look and act; return after how many seconds to try again if nothing is reported, ``None``: it went well."""
        repaired, mtu = sum(self.repairs.values()), self._kept.mtu
        try:
            monitor.interest = self._interest()
            external = await asyncio.to_thread(netlink.link_state, self.external.index)
            obstacle = await self._follow(external, monitor)
            await self._kept.repair()
            await self._restore_blackhole()
            retry_s = None
        except FlannelError as failed:
            obstacle = str(failed)
            retry_s = min(2 * (retry_s or FIRST_RETRY_S / 2), LAST_RETRY_S)
        self._note_obstacle(obstacle)
        repaired_now = sum(self.repairs.values()) > repaired
        if self._untold or repaired_now or mtu != self._kept.mtu:
            self._untold = False
            await self._news()
        if repaired_now:
            self.wake()  # look again: what changed while we were at it went by unseen
            if self._pace.note(time.monotonic()):
                logger.warning("somebody undoes our repairs again and again: they become rarer from now on")
        return retry_s

    def _interest(self) -> Interest | None:
        """Return which news concern us; while something is in the way, anything may change that."""
        if self.obstacle is not None:
            return None
        kept = self._kept.interest()
        blackhole = {self._blackhole.prefixlen} if self._blackhole else set()
        return replace(kept, devices={self.external.index, *kept.devices}, prefix_lens={*kept.prefix_lens, *blackhole})

    # The external interface

    async def _follow(self, found: LinkState | None, monitor: Monitor) -> str | None:
        """Stay with the interface and the address in use while they are there; else choose again, as at the start.

        Returns why no interface is usable, ``None`` if one is. Raises `FlannelError`.
        """
        why = why_lost(self.external, found)
        if why is None and found is not None:
            await self._use(replace(self.external, mtu=found.mtu))
            return None
        self._external_lost = True
        monitor.interest = None  # another interface may come, or this one come back under another index
        facts = await asyncio.to_thread(interface.gather, self._options.interface)
        try:
            external = interface.choose(self._options.interface, facts)
        except FlannelError:
            return f"{why}: waiting for it"
        await self._use(external)
        return None

    async def _use(self, external: Interface) -> None:
        former = self.external
        if self._external_lost and external.address == former.address:
            self._repairs["interface"] += 1
        self._external_lost = False
        if external == former:
            return
        await self._kept.follow(external)
        self.external, self._untold = external, True

    # The blackhole route

    @property
    def _blackhole(self) -> IPv4Network | None:
        """Where it leads to, if one is wanted."""
        return self._subnet if self._options.firewall.ip_blackhole_route else None

    async def _restore_blackhole(self) -> None:
        """Raises `FlannelError`."""
        subnet = self._blackhole
        if subnet is not None and await asyncio.to_thread(restore_blackhole, subnet):
            self._repairs["blackhole"] += 1
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
