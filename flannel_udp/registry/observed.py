"""A registry whose calls and events are counted, and are lines of the log with ``-v 3`` and ``-v 2``."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from flannel_udp.errors import FlannelError, RegistryError
from flannel_udp.levels import CHANGES, QUESTIONS
from flannel_udp.model import Change, Entry, Snapshot
from flannel_udp.registry import Registry, Tell
from flannel_udp.registry.outage import keep_quiet

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")


REQUESTS = ("read_config", "list", "create", "take", "renew", "move", "delete", "time_left", "announce_up")
"""What an agent asks of a registry, as it is counted."""


@dataclass(slots=True)
class Asked:
    """Requests of one kind that have come to an end, of whatever kind that was."""

    count: int = 0
    failed: int = 0
    seconds: float = 0.0
    """How long they took, all together."""


@dataclass(slots=True)
class RegistryCounts:
    """What was asked of a registry since the start, and what came of its watch."""

    asked: dict[str, Asked] = field(default_factory=lambda: {request: Asked() for request in REQUESTS})
    snapshots: int = 0
    """Whole listings that the watch began with: more than one means that it had lost its place."""
    changes: int = 0
    watching: bool = False
    """Whether the watch stands."""
    outages: int = 0
    """How often the watch could not go on, or not begin."""
    restarts: int = 0
    """How many of these are over."""

    def note_watch(self, trouble: RegistryError | None) -> None:
        """Take note of what a watch tells, see `flannel_udp.registry.Tell`; of one outage perhaps again and again."""
        if trouble is None:
            self.restarts += self.outages > self.restarts
            self.watching = True
        else:
            self.outages += self.watching or self.outages == self.restarts
            self.watching = False


class ObservedRegistry:
    """An agent's `flannel_udp.registry.Registry`. What is stored is not shown: keys are."""

    def __init__(self, registry: Registry, counts: RegistryCounts) -> None:
        self._registry = registry
        self._counts = counts

    async def read_config(self) -> bytes:
        """See `Registry.read_config`."""
        return await self._asked("read_config", "read the network configuration", self._registry.read_config())

    async def write_config(self, raw: bytes) -> None:
        """See `Registry.write_config`."""
        await self._registry.write_config(raw)

    async def assigned(self) -> Entry | None:
        """See `Registry.assigned`."""
        return await self._registry.assigned()

    async def announce_up(self) -> None:
        """See `Registry.announce_up`."""
        await self._asked("announce_up", "announce that this host is up", self._registry.announce_up())

    async def list(self) -> Snapshot:
        """See `Registry.list`."""
        return await self._asked("list", "list the subnets", self._registry.list())

    async def create(self, key: str, value: bytes, ttl_s: int) -> Entry:
        """See `Registry.create`."""
        return await self._asked("create", f"create {key}", self._registry.create(key, value, ttl_s))

    async def take(self, entry: Entry, value: bytes, ttl_s: int) -> Entry:
        """See `Registry.take`."""
        return await self._asked("take", f"take {entry.key}", self._registry.take(entry, value, ttl_s))

    async def renew(self, entry: Entry, value: bytes, ttl_s: int) -> Entry:
        """See `Registry.renew`."""
        return await self._asked("renew", f"renew {entry.key}", self._registry.renew(entry, value, ttl_s))

    async def move(self, entry: Entry, key: str, value: bytes) -> Entry:
        """See `Registry.move`."""
        return await self._asked("move", f"move {entry.key} to {key}", self._registry.move(entry, key, value))

    async def reserve(self, key: str, value: bytes, entry: Entry | None) -> Entry:
        """See `Registry.reserve`."""
        return await self._registry.reserve(key, value, entry)

    async def delete(self, entry: Entry) -> None:
        """See `Registry.delete`."""
        await self._asked("delete", f"delete {entry.key}", self._registry.delete(entry))

    async def time_left_s(self, entry: Entry) -> float | None:
        """See `Registry.time_left_s`."""
        return await self._asked("time_left", f"time left of {entry.key}", self._registry.time_left_s(entry))

    async def times_left_s(
        self, entries: Collection[Entry], told: Callable[[int], object] = lambda _n: None
    ) -> Mapping[str, float | None]:
        """See `Registry.times_left_s`."""
        return await self._registry.times_left_s(entries, told)

    def count_families(self, versions: Collection[int]) -> None:
        """See `Registry.count_families`."""
        self._registry.count_families(versions)

    def adopt(self, entry: Entry) -> None:
        """See `Registry.adopt`."""
        self._registry.adopt(entry)

    async def watch(self, tell: Tell = keep_quiet) -> AsyncGenerator[Snapshot | Change, None]:
        """See `Registry.watch`."""

        def note(trouble: RegistryError | None) -> None:
            self._counts.note_watch(trouble)
            tell(trouble)

        try:
            async with contextlib.aclosing(self._registry.watch(note)) as events:
                async for event in events:
                    self._note_event(event)
                    yield event
        except RegistryError as refused:
            self._counts.note_watch(refused)
            raise

    def _note_event(self, event: Snapshot | Change) -> None:
        if isinstance(event, Snapshot):
            self._counts.snapshots += 1
            logger.log(CHANGES, "registry: revision %d: %d entries", event.revision, len(event.entries))
            return
        self._counts.changes += 1
        if not logger.isEnabledFor(CHANGES):
            return
        for key, entry in event.entries.items():
            what = "deleted" if entry is None else "written"
            logger.log(CHANGES, "registry: revision %d: %s %s", event.revision, key, what)

    async def close(self) -> None:
        """See `Registry.close`."""
        await self._registry.close()

    async def _asked(self, request: str, what: str, call: Awaitable[_Result]) -> _Result:
        started_s, asked = time.monotonic(), self._counts.asked[request]
        outcome = "given up"  # unless something else is known below: a call may be cancelled
        try:
            result = await call
            outcome = "done"
        except FlannelError as error:
            outcome = f"failed: {error}"
            asked.failed += 1
            raise
        finally:
            took_s = time.monotonic() - started_s
            asked.count += 1
            asked.seconds += took_s
            logger.log(QUESTIONS, "registry: %s: %s, %.1f ms", what, outcome, took_s * 1e3)
        return result
