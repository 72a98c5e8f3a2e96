"""A registry whose every call, and every event of its watch, is a line of the log: for ``-v 3`` and ``-v 2``."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from typing import TypeVar

from flannel_udp.errors import FlannelError
from flannel_udp.levels import CHANGES, QUESTIONS
from flannel_udp.model import Change, Entry, Snapshot
from flannel_udp.registry import Registry, Tell
from flannel_udp.registry.outage import keep_quiet

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")


def logged(registry: Registry) -> Registry:
    """Return the registry, with what is asked of it in the log if that is wanted there."""
    return LoggedRegistry(registry) if logger.isEnabledFor(CHANGES) else registry


class LoggedRegistry:
    """See `flannel_udp.registry.Registry`. What is stored is not shown: keys are."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def read_config(self) -> bytes:
        """See `Registry.read_config`."""
        return await self._asked("read the network configuration", self._registry.read_config())

    async def write_config(self, raw: bytes) -> None:
        """See `Registry.write_config`."""
        await self._asked("write the network configuration", self._registry.write_config(raw))

    async def assigned(self) -> Entry | None:
        """See `Registry.assigned`."""
        return await self._registry.assigned()

    async def announce_up(self) -> None:
        """See `Registry.announce_up`."""
        await self._asked("announce that this host is up", self._registry.announce_up())

    async def list(self) -> Snapshot:
        """See `Registry.list`."""
        return await self._asked("list the subnets", self._registry.list())

    async def create(self, key: str, value: bytes, ttl_s: int) -> Entry:
        """See `Registry.create`."""
        return await self._asked(f"create {key}", self._registry.create(key, value, ttl_s))

    async def take(self, entry: Entry, value: bytes, ttl_s: int) -> Entry:
        """See `Registry.take`."""
        return await self._asked(f"take {entry.key}", self._registry.take(entry, value, ttl_s))

    async def renew(self, entry: Entry, value: bytes, ttl_s: int) -> Entry:
        """See `Registry.renew`."""
        return await self._asked(f"renew {entry.key}", self._registry.renew(entry, value, ttl_s))

    async def move(self, entry: Entry, key: str, value: bytes) -> Entry:
        """See `Registry.move`."""
        return await self._asked(f"move {entry.key} to {key}", self._registry.move(entry, key, value))

    async def reserve(self, key: str, value: bytes, entry: Entry | None) -> Entry:
        """See `Registry.reserve`."""
        return await self._asked(f"reserve {key}", self._registry.reserve(key, value, entry))

    async def delete(self, entry: Entry) -> None:
        """See `Registry.delete`."""
        await self._asked(f"delete {entry.key}", self._registry.delete(entry))

    async def time_left_s(self, entry: Entry) -> float | None:
        """See `Registry.time_left_s`."""
        return await self._asked(f"time left of {entry.key}", self._registry.time_left_s(entry))

    async def times_left_s(
        self, entries: Collection[Entry], told: Callable[[int], object] = lambda _n: None
    ) -> Mapping[str, float | None]:
        """See `Registry.times_left_s`."""
        return await self._asked(f"time left of {len(entries)} keys", self._registry.times_left_s(entries, told))

    def count_families(self, versions: Collection[int]) -> None:
        """See `Registry.count_families`."""
        self._registry.count_families(versions)

    def adopt(self, entry: Entry) -> None:
        """See `Registry.adopt`."""
        self._registry.adopt(entry)

    async def watch(self, tell: Tell = keep_quiet) -> AsyncGenerator[Snapshot | Change, None]:
        """See `Registry.watch`."""
        async with contextlib.aclosing(self._registry.watch(tell)) as events:
            async for event in events:
                if isinstance(event, Snapshot):
                    logger.log(CHANGES, "registry: revision %d: %d entries", event.revision, len(event.entries))
                else:
                    for key, entry in event.entries.items():
                        what = "deleted" if entry is None else "written"
                        logger.log(CHANGES, "registry: revision %d: %s %s", event.revision, key, what)
                yield event

    async def close(self) -> None:
        """See `Registry.close`."""
        await self._registry.close()

    async def _asked(self, what: str, call: Awaitable[_Result]) -> _Result:
        started_s = time.monotonic()
        outcome = "given up"  # unless something else is known below: a call may be cancelled
        try:
            result = await call
            outcome = "done"
        except FlannelError as error:
            outcome = f"failed: {error}"
            raise
        finally:
            logger.log(QUESTIONS, "registry: %s: %s, %.1f ms", what, outcome, (time.monotonic() - started_s) * 1e3)
        return result
