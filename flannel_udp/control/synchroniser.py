"""Keeps the data path's peers as the registry says: watch, peer table, publish.

Two tasks: one follows the watch and keeps the table, the other publishes. While a publish runs, and for a moment after
it, further changes gather and go out together in the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from flannel_udp.backoff.delay import Backoff
from flannel_udp.control.peer_log import PeerLog
from flannel_udp.control.peers import PeerTable, SharedSubnet
from flannel_udp.control.retry import DEFAULT_DELAYS, Complaints, Delays
from flannel_udp.errors import RegistryError
from flannel_udp.levels import CHANGES, STEPS
from flannel_udp.model import Address, Change, Delta, Entry, Lease, LeaseAttrs, Prefix, Snapshot, Subnet
from flannel_udp.registry import Registry, Tell

logger = logging.getLogger(__name__)

PAUSE_S = 0.03
"""Between two publishes. A thousand changes a second make at most 33 tables so, and each is on average 15 ms later."""

RELIST_S = 60.0
"""A store that lists and lets nobody watch is listed again after so long at most: a listing costs it much."""

Observe = Callable[[Entry | None], None]
"""Told what the watch shows under our own key, ``None`` for nothing: `LeaseKeeper.observe`."""


NoteClaims = Callable[[Sequence[Entry], Sequence[SharedSubnet]], None]
"""Told again and again which leases of other hosts have our address, see `PeerTable.claims`, and which subnets are of
several hosts, see `PeerTable.shared`."""


class Publisher(Protocol):
    """Where the peers go: the data path."""

    async def publish(self, own: Subnet, deltas: Sequence[Delta], *, whole: bool) -> None:
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
    peers_by_version: Mapping[int, int]
    last_event_s: float | None
    """Unix time of the last event."""
    published: int
    """How often the peers were published."""
    publishing_s: float
    """How long that took, all together."""


class Synchroniser:
    """Runs until cancelled. Exceptions of the publisher are not caught: they end `run`.

    `tell` hears of what keeps us from following the registry, and of its end; the log says both. `news` hears what
    becomes of the peers.
    """

    def __init__(
        self,
        registry: Registry,
        table: PeerTable,
        publisher: Publisher,
        observe: Observe,
        delays: Delays = DEFAULT_DELAYS,
        *,
        tell: Tell = lambda _trouble: None,
        note_claims: NoteClaims = lambda _claims, _shared: None,
        news: Callable[[Delta], object] = lambda _delta: None,
    ) -> None:
        self._registry = registry
        self._tell = tell
        self._table = table
        self._publisher = publisher
        self._observe = observe
        self._note_claims = note_claims
        self._delays = delays
        self._lease: Lease | None = None
        self._synchronised = False  # a snapshot was taken in
        self._unpublished: list[Delta] = []
        self._whole = True  # the data path is to forget what it has
        self._stale = asyncio.Event()  # the data path does not have what the table has
        self._feeding = asyncio.Lock()  # the table is between two states of the registry
        self._revision = 0
        self._last_event_s: float | None = None
        self._published, self._publishing_s = 0, 0.0
        self._log = PeerLog(lambda: table.count, news)
        self.first_published = asyncio.Event()
        """Set when the data path has got its first set of peers."""

    @property
    def status(self) -> SyncStatus:
        """Plain numbers for status and metrics."""
        return SyncStatus(
            *(self._revision, self._table.count, self._table.counts, self._last_event_s),
            *(self._published, self._publishing_s),
        )

    @property
    def ours(self) -> frozenset[Prefix]:
        """What other entries than our lease's have under our address: packets for it are delivered to the kernel."""
        return self._table.ours()

    def host_of(self, subnet: Prefix) -> str | None:
        """Return the name of the host that holds a peer's subnet, see `PeerTable.host_of`."""
        return self._table.host_of(subnet)

    async def set_own(self, lease: Lease | None) -> None:
        """Set the lease that this host holds; without one nothing is published."""
        async with self._feeding:
            self._lease = lease
            own = (None, None) if lease is None else (lease.subnet, lease.entry.host)
            self._log.write(self._table.set_own(*own))
            self._tell_claims()
            self._whole = True
            self._stale.set()
        if lease is not None and self._synchronised:
            # The watch may have been ahead of us: what it said about our key went by unseen.
            self._observe(self._table.entry(lease.entry.key))

    async def set_public_ips(self, ours: LeaseAttrs) -> None:
        """Set the addresses that this host is dialled at, when they have changed."""
        async with self._feeding:
            delta = self._table.set_public_ips(ours)
            self._log.write(delta)
            self._tell_claims()
            self._unpublished.append(delta)
            self._stale.set()

    async def set_own_addresses(self, own: Mapping[Address, str]) -> None:
        """Set what addresses this host has, when they have changed, see `PeerTable.set_own_addresses`."""
        async with self._feeding:
            delta = self._table.set_own_addresses(own)
            self._log.write(delta)
            if delta:
                self._unpublished.append(delta)
                self._stale.set()

    async def run(self) -> None:
        """Follow the registry and publish, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(), name="follow the registry")
            tasks.create_task(self._publish(), name="publish the peers")

    async def _follow(self) -> None:
        complaints, refused = Complaints("watching the subnets"), self._delays.backoff()
        relist = Backoff(self._delays.first_retry_s, RELIST_S, random.Random())  # noqa: S311 - no secret

        def tell(trouble: RegistryError | None) -> None:
            if trouble is None:  # the watch stands; a listing alone tells nothing
                complaints.worked()
                refused.reset()
                relist.reset()
            self._tell(trouble)

        while True:
            backoff = refused
            try:
                async with contextlib.aclosing(self._registry.watch(tell)) as events:
                    async for event in events:
                        backoff = relist
                        await self._take(event)
            except RegistryError as error:  # refused us; everything else is retried inside
                complaints.failed(error, "trying again until it works")
                self._tell(error)
            await asyncio.sleep(backoff.next_s())

    async def _take(self, event: Snapshot | Change) -> None:
        """Take in one event, in small steps that leave room for the event loop's other work."""
        lease = self._lease
        if lease is not None and (isinstance(event, Snapshot) or lease.entry.key in event.entries):
            self._observe(event.entries.get(lease.entry.key))
        former = self._table.count
        async with self._feeding:
            for part in self._table.parts(event):
                self._table.feed(part)
                await asyncio.sleep(0)
            delta = self._table.take_delta()
            self._revision = event.revision
            self._last_event_s = time.time()
            if former and not self._table.count and isinstance(event, Snapshot):
                logger.warning("the registry lists none of its %d peers any more: was it emptied, or restored?", former)
            self._log.write(delta)
            self._tell_claims()
            if delta or not self._synchronised:
                self._synchronised = True
                self._unpublished.append(delta)
                self._stale.set()

    def _tell_claims(self) -> None:
        self._note_claims(self._table.claims(), self._table.shared())

    async def _publish(self) -> None:
        while True:
            await self._stale.wait()
            async with self._feeding:
                self._stale.clear()
                own = None if self._lease is None else self._lease.subnet
                deltas, self._unpublished = self._unpublished, []
                if own is None or not self._synchronised:
                    continue  # set_own or the first snapshot raises the flag again, for a whole publish
                whole, self._whole = self._whole, False
                if whole:
                    deltas = [Delta(added=self._table.peers(), ours=self._table.ours())]
            started_s = time.monotonic()
            await self._publisher.publish(own, deltas, whole=whole)
            level, what = (STEPS, "all") if whole else (CHANGES, "what changed of")
            took_s = time.monotonic() - started_s
            logger.log(level, "published %s %d peers, %.1f ms", what, self._table.count, took_s * 1e3)
            self._published += 1
            self._publishing_s += took_s
            self.first_published.set()
            await asyncio.sleep(PAUSE_S)
