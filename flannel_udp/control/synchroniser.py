"""Keeps the data path's peers as the registry says: watch, peer table, publish.

Two tasks: one follows the watch and keeps the table, the other publishes. While a publish runs, and for a moment after
it, further changes gather and go out together in the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Protocol

from flannel_udp.control.peer_log import PeerLog
from flannel_udp.control.peers import PeerTable
from flannel_udp.control.retry import DEFAULT_DELAYS, Complaints, Delays
from flannel_udp.errors import RegistryError
from flannel_udp.model import Change, Delta, Entry, Lease, Snapshot
from flannel_udp.registry import Registry

logger = logging.getLogger(__name__)

PAUSE_S = 0.03
"""Between two publishes. A thousand changes a second make at most 33 tables so, and each is on average 15 ms later."""

Observe = Callable[[Entry | None], None]
"""Told what the watch shows under our own key, ``None`` for nothing: `LeaseKeeper.observe`."""


class Publisher(Protocol):
    """Where the peers go: the data path."""

    async def publish(self, own: IPv4Network, deltas: Sequence[Delta], *, whole: bool) -> None:
        """Put routes in force: `own` is this host's subnet, the peers are the last ones after `deltas`.

        With `whole` there were none before. A publisher that lets a publish pass undone gets a whole one next, as only
        a lease that is lost makes it do so.
        """
        ...


@dataclass(frozen=True, slots=True)
class SyncStatus:
    """Where the synchroniser stands."""

    revision: int
    """The registry's revision of the last event, 0 before the first one."""
    peers: int
    last_event_s: float | None
    """Unix time of the last event."""
    published: int
    """How often the peers were published."""


class Synchroniser:
    """Runs until cancelled. Exceptions of the publisher are not caught: they end `run`."""

    def __init__(
        self,
        registry: Registry,
        table: PeerTable,
        publisher: Publisher,
        observe: Observe,
        delays: Delays = DEFAULT_DELAYS,
    ) -> None:
        self._registry = registry
        self._table = table
        self._publisher = publisher
        self._observe = observe
        self._delays = delays
        self._lease: Lease | None = None
        self._synchronised = False  # a snapshot was taken in
        self._unpublished: list[Delta] = []
        self._whole = True  # the data path is to forget what it has
        self._stale = asyncio.Event()  # the data path does not have what the table has
        self._feeding = asyncio.Lock()  # the table is between two states of the registry
        self._revision = 0
        self._last_event_s: float | None = None
        self._published = 0
        self._log = PeerLog(lambda: table.count)
        self.first_published = asyncio.Event()
        """Set when the data path has got its first set of peers."""

    @property
    def status(self) -> SyncStatus:
        """Plain numbers for status and metrics."""
        return SyncStatus(self._revision, self._table.count, self._last_event_s, self._published)

    async def set_own(self, lease: Lease | None) -> None:
        """Set the lease that this host holds; without one nothing is published."""
        async with self._feeding:
            self._lease = lease
            self._log.write(self._table.set_own(None if lease is None else lease.subnet.v4))
            self._whole = True
            self._stale.set()
        if lease is not None and self._synchronised:
            # The watch may have been ahead of us: what it said about our key went by unseen.
            self._observe(self._table.entry(lease.entry.key))

    async def set_public_ip(self, public_ip: IPv4Address) -> None:
        """Set the address that this host is dialled at, when it has changed."""
        async with self._feeding:
            delta = self._table.set_public_ip(public_ip)
            self._log.write(delta)
            self._unpublished.append(delta)
            self._stale.set()

    async def run(self) -> None:
        """Follow the registry and publish, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(), name="follow the registry")
            tasks.create_task(self._publish(), name="publish the peers")

    async def _follow(self) -> None:
        complaints, backoff = Complaints("watching the subnets"), self._delays.backoff()
        while True:
            try:
                async with contextlib.aclosing(self._registry.watch()) as events:
                    async for event in events:
                        complaints.worked()
                        backoff.reset()
                        await self._take(event)
            except RegistryError as error:  # refused us; everything else is retried inside
                complaints.failed(error, "trying again until it works")
            await asyncio.sleep(backoff.next_s())

    async def _take(self, event: Snapshot | Change) -> None:
        """Take in one event, in small steps that leave room for the event loop's other work."""
        lease = self._lease
        if lease is not None and (isinstance(event, Snapshot) or lease.entry.key in event.entries):
            self._observe(event.entries.get(lease.entry.key))
        async with self._feeding:
            for part in self._table.parts(event):
                self._table.feed(part)
                await asyncio.sleep(0)
            delta = self._table.take_delta()
            self._revision = event.revision
            self._last_event_s = time.time()
            self._log.write(delta)
            if delta or not self._synchronised:
                self._synchronised = True
                self._unpublished.append(delta)
                self._stale.set()

    async def _publish(self) -> None:
        while True:
            await self._stale.wait()
            async with self._feeding:
                self._stale.clear()
                own = None if self._lease is None else self._lease.subnet.v4
                deltas, self._unpublished = self._unpublished, []
                if own is None or not self._synchronised:
                    continue  # set_own or the first snapshot raises the flag again, for a whole publish
                whole, self._whole = self._whole, False
                if whole:
                    deltas = [Delta(added=self._table.peers())]
            await self._publisher.publish(own, deltas, whole=whole)
            self._published += 1
            self.first_published.set()
            await asyncio.sleep(PAUSE_S)
