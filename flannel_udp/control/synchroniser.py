"""Keeps the data path's peers as the registry says: watch, peer table, publish.

Two tasks: one follows the watch and keeps the table, the other publishes. While a publish runs, further changes gather
in the table and go out in the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Protocol

from flannel_udp.control.peers import PeerTable
from flannel_udp.control.retry import DEFAULT_DELAYS, Complaints, Delays
from flannel_udp.errors import RegistryError
from flannel_udp.model import Change, Delta, Entry, Lease, Peer, Snapshot
from flannel_udp.registry import Registry

logger = logging.getLogger(__name__)

MAX_LINES = 10
"""More peers or warnings than this at once are logged as a summary."""
FLOOD_S = 10.0
"""So long after a warning no more than `MAX_LINES` of them are said one by one, however they are spread over events."""

Observe = Callable[[Entry | None], None]
"""Told what the watch shows under our own key, ``None`` for nothing: `LeaseKeeper.observe`."""


class Publisher(Protocol):
    """Where the peers go: the data path."""

    async def publish(self, own: IPv4Network, peers: Sequence[Peer]) -> None:
        """Replace all routes: `own` is this host's subnet, `peers` all the others in no particular order."""
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
        self._stale = asyncio.Event()  # the data path does not have what the table has
        self._feeding = asyncio.Lock()  # the table is between two states of the registry
        self._revision = 0
        self._last_event_s: float | None = None
        self._published = 0
        self._lines_left = MAX_LINES
        self._unsaid = 0
        self._flood: asyncio.TimerHandle | None = None
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
            self._report(self._table.set_own(None if lease is None else lease.subnet.v4))
            self._stale.set()
        if lease is not None and self._synchronised:
            # The watch may have been ahead of us: what it said about our key went by unseen.
            self._observe(self._table.entry(lease.entry.key))

    async def run(self) -> None:
        """Follow the registry and publish, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(), name="follow the registry")
            tasks.create_task(self._publish(), name="publish the peers")

    async def _follow(self) -> None:
        complaints = Complaints("watching the subnets")
        delay_s = self._delays.first_retry_s
        while True:
            try:
                async with contextlib.aclosing(self._registry.watch()) as events:
                    async for event in events:
                        complaints.worked()
                        delay_s = self._delays.first_retry_s
                        await self._take(event)
            except RegistryError as error:  # refused us; everything else is retried inside
                complaints.failed(error, "trying again until it works")
            await asyncio.sleep(delay_s)
            delay_s = self._delays.after(delay_s)

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
            self._report(delta)
            if delta or not self._synchronised:
                self._synchronised = True
                self._stale.set()

    async def _publish(self) -> None:
        while True:
            await self._stale.wait()
            async with self._feeding:
                self._stale.clear()
                own = None if self._lease is None else self._lease.subnet.v4
                peers = self._table.peers()
            if own is None or not self._synchronised:
                continue  # set_own or the first snapshot raises the flag again
            await self._publisher.publish(own, peers)
            self._published += 1
            self.first_published.set()

    def _report(self, delta: Delta) -> None:
        self._warn(delta.warnings)
        lists = {"added": delta.added, "changed": delta.changed, "removed": delta.removed}
        if sum(map(len, lists.values())) > MAX_LINES:
            counts = ", ".join(f"{len(peers)} {what}" for what, peers in lists.items() if peers)
            logger.info("peers: %s, now %d", counts, self._table.count)
            return
        for what, peers in lists.items():
            for peer in peers:
                logger.info("peer %s: %s via %s", what, peer.subnet, peer.public_ip)

    def _warn(self, warnings: Sequence[str]) -> None:
        said, rest = warnings[: self._lines_left], warnings[self._lines_left :]
        for warning in said:
            logger.warning("%s", warning)
        self._lines_left -= len(said)
        if said and rest:
            logger.warning("... and %d more warnings like these", len(rest))
        elif rest:
            self._unsaid += len(rest)
        if warnings and self._flood is None:
            self._flood = asyncio.get_running_loop().call_later(FLOOD_S, self._flood_is_over)

    def _flood_is_over(self) -> None:
        if self._unsaid:
            logger.warning("... and %d more warnings like these within %g s", self._unsaid, FLOOD_S)
        self._flood, self._unsaid, self._lines_left = None, 0, MAX_LINES
