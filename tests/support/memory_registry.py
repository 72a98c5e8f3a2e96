"""A registry in memory whose timing, races and failures a test drives by hand.

Only for what cannot be made to happen on time in a real store; everything else is tested against the file registry.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection

from flannel_udp.errors import ConfigMissing, LeaseLost, RegistryError, SubnetTaken
from flannel_udp.model import Change, Entry, Snapshot, lease_id_of
from flannel_udp.registry import Tell
from flannel_udp.registry.outage import keep_quiet


class MemoryRegistry:
    """See `flannel_udp.registry.Registry`. Nothing expires unless the test deletes it."""

    def __init__(self, mark: int = 0) -> None:
        self.mark = mark
        """The host's whose agent uses this registry."""
        self.config: bytes | None = None
        self.entries: dict[str, Entry] = {}
        self.revision = 1
        self.calls: list[str] = []
        self.failure: RegistryError | None = None
        """Raised by every call while set."""
        self.hang = False
        """While set, no renewal is ever answered."""
        self.before: Callable[[str], None] = lambda _call: None
        """Called with the name of each call before it does anything: the place for another host's doings."""
        self.granted_s = 86_400.0
        """What `time_left_s` answers for a lease."""
        self.ttls_s: set[int] = set()
        self.given: Entry | None = None
        """What `assigned` answers: set by the test of a store that hands out the subnets."""
        self._watchers: list[asyncio.Queue[Snapshot | Change | RegistryError]] = []

    # What a test does.

    def put(self, key: str, value: bytes, lease_id: int = 7) -> Entry:
        """Write as another host or a person would."""
        self.revision += 1
        self.entries[key] = entry = Entry(key, value, self.revision, lease_id)
        self.tell(Change({key: entry}, self.revision))
        return entry

    def remove(self, key: str) -> None:
        self.revision += 1
        del self.entries[key]
        self.tell(Change({key: None}, self.revision))

    def tell(self, event: Snapshot | Change | RegistryError) -> None:
        """Let every watcher have an event; an error ends its watch."""
        for watcher in self._watchers:
            watcher.put_nowait(event)

    def snapshot(self) -> Snapshot:
        return Snapshot(dict(self.entries), self.revision)

    def _new_lease_id(self) -> int:
        return lease_id_of(self.mark, self.revision) if self.mark else 7

    # What the agent calls.

    def _begin(self, call: str) -> None:
        self.calls.append(call)
        self.before(call)
        if self.failure is not None:
            raise self.failure

    def _check(self, entry: Entry) -> None:
        if self.entries.get(entry.key) != entry:
            raise LeaseLost(f"{entry.key} is not as we wrote it")

    async def read_config(self) -> bytes:
        self._begin("read_config")
        if self.config is None:
            raise ConfigMissing("no network configuration")
        return self.config

    async def write_config(self, raw: bytes) -> None:
        self.config = raw

    async def assigned(self) -> Entry | None:
        return self.given

    def count_families(self, versions: Collection[int]) -> None:
        pass

    async def announce_up(self) -> None:
        self._begin("announce_up")

    async def list(self) -> Snapshot:
        self._begin("list")
        return self.snapshot()

    async def create(self, key: str, value: bytes, ttl_s: int) -> Entry:
        self._begin("create")
        self.ttls_s.add(ttl_s)
        if key in self.entries:
            raise SubnetTaken(f"{key} is taken")
        return self.put(key, value, self._new_lease_id())

    async def take(self, entry: Entry, value: bytes, ttl_s: int) -> Entry:
        self._begin("take")
        self.ttls_s.add(ttl_s)
        self._check(entry)
        return self.put(entry.key, value, self._new_lease_id() if entry.lease_id else 0)

    async def renew(self, entry: Entry, value: bytes, ttl_s: int) -> Entry:
        self._begin("renew")
        if self.hang:
            await asyncio.Event().wait()
        self.ttls_s.add(ttl_s)
        self._check(entry)
        return entry if value == entry.value else self.put(entry.key, value, entry.lease_id)

    async def move(self, entry: Entry, key: str, value: bytes) -> Entry:
        self._begin("move")
        self._check(entry)
        if key in self.entries:
            raise SubnetTaken(f"{key} is taken")
        self.revision += 1
        del self.entries[entry.key]
        self.entries[key] = moved = Entry(key, value, self.revision, entry.lease_id)
        self.tell(Change({entry.key: None, key: moved}, self.revision))
        return moved

    async def reserve(self, key: str, value: bytes, entry: Entry | None) -> Entry:
        self._begin("reserve")
        if entry is not None:
            self._check(entry)
        elif key in self.entries:
            raise SubnetTaken(f"{key} is taken")
        return self.put(key, value, lease_id=0)

    async def delete(self, entry: Entry) -> None:
        self._begin("delete")
        self._check(entry)
        self.remove(entry.key)

    async def time_left_s(self, entry: Entry) -> float | None:
        self._begin("time_left_s")
        self._check(entry)
        return None if entry.reserved else self.granted_s

    async def times_left_s(
        self, entries: Collection[Entry], told: Callable[[int], object] = lambda _n: None
    ) -> dict[str, float | None]:
        self._begin("times_left_s")
        told(len(entries))
        return {entry.key: None if entry.reserved else self.granted_s for entry in entries}

    def adopt(self, entry: Entry) -> None:
        """See `Registry.adopt`: the entry says all there is to know."""

    async def watch(self, tell: Tell = keep_quiet) -> AsyncGenerator[Snapshot | Change, None]:
        self._begin("watch")
        events: asyncio.Queue[Snapshot | Change | RegistryError] = asyncio.Queue()
        self._watchers.append(events)
        tell(None)
        try:
            yield self.snapshot()
            while True:
                event = await events.get()
                if isinstance(event, RegistryError):
                    raise event
                yield event
        finally:
            self._watchers.remove(events)

    async def close(self) -> None:
        """Nothing to close."""
