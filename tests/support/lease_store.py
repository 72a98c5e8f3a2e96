"""What etcd does, on a clock that a test sets: keys under leases, written only as they were last read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flannel_udp.errors import LeaseLost, SubnetTaken
from flannel_udp.model import Change, Entry, Snapshot

TTL_S = 600.0


@dataclass(frozen=True)
class Backup:
    """What a store held at one moment. Of a lease it knows how long it was granted for, not how much was left."""

    entries: dict[str, Entry]
    revision: int


class Store:
    """Every method takes effect at one moment of the store's clock."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.entries: dict[str, Entry] = {}
        self.revision = 1
        self.writes = 0
        self.changed: Callable[[Change], None] = lambda _change: None
        self._ends_s: dict[int, float] = {}

    def put(self, key: str, value: bytes, lease_id: int) -> Entry:
        self.revision += 1
        self.writes += 1
        self.entries[key] = entry = Entry(key, value, self.revision, lease_id)
        self.changed(Change({key: entry}, self.revision))
        return entry

    def remove(self, key: str) -> None:
        self.revision += 1
        del self.entries[key]
        self.changed(Change({key: None}, self.revision))

    def expire(self) -> None:
        gone = {lease_id for lease_id, end_s in self._ends_s.items() if end_s <= self.now_s}
        for lease_id in gone:
            del self._ends_s[lease_id]
        for key in [key for key, entry in self.entries.items() if entry.lease_id in gone]:
            self.remove(key)

    def next_end_s(self) -> float | None:
        return min(self._ends_s.values(), default=None)

    def back_up(self) -> Backup:
        return Backup(dict(self.entries), self.revision)

    def restore(self, backup: Backup) -> None:
        """Be as it was then, and count on from there. Who watches has to begin anew."""
        self.entries, self.revision = dict(backup.entries), backup.revision
        leases = {entry.lease_id for entry in self.entries.values() if not entry.reserved}
        self._ends_s = dict.fromkeys(leases, self.now_s + TTL_S)

    def snapshot(self) -> Snapshot:
        return Snapshot(dict(self.entries), self.revision)

    def create(self, key: str, value: bytes, lease_id: int) -> Entry:
        current = self.entries.get(key)
        if current is not None and current.lease_id != lease_id:
            raise SubnetTaken(f"{key} is taken")
        if current is not None:
            return current  # the request came twice
        self._ends_s[lease_id] = self.now_s + TTL_S
        return self.put(key, value, lease_id)

    def take(self, entry: Entry, value: bytes, lease_id: int) -> Entry:
        if entry.reserved:
            return self.renew(entry, value)
        current = self.entries.get(entry.key)
        if current is not None and current.lease_id == lease_id:
            return current  # the request came twice
        self.check(entry)
        self._ends_s[lease_id] = self.now_s + TTL_S
        return self.put(entry.key, value, lease_id)

    def renew(self, entry: Entry, value: bytes) -> Entry:
        # As in etcd: the lease is kept alive first, then the key is compared.
        if not entry.reserved:
            if entry.lease_id not in self._ends_s:
                raise LeaseLost("the lease has expired")
            self._ends_s[entry.lease_id] = self.now_s + TTL_S
        self.check(entry)
        return entry if entry.value == value else self.put(entry.key, value, entry.lease_id)

    def move(self, entry: Entry, key: str, value: bytes) -> Entry:
        current = self.entries.get(key)
        if current is not None and (current.lease_id, current.value) == (entry.lease_id, value):
            return current  # the request came twice
        self.check(entry)
        if current is not None:
            raise SubnetTaken(f"{key} is taken")
        self.revision += 1
        self.writes += 1
        del self.entries[entry.key]
        self.entries[key] = moved = Entry(key, value, self.revision, entry.lease_id)
        self.changed(Change({entry.key: None, key: moved}, self.revision))
        return moved

    def check(self, entry: Entry) -> None:
        if self.entries.get(entry.key) != entry:
            raise LeaseLost(f"{entry.key} is not as you wrote it")

    def time_left_s(self, entry: Entry) -> float | None:
        self.check(entry)
        return None if entry.reserved else self._ends_s[entry.lease_id] - self.now_s
