"""The registry in one JSON file: for one machine, or for several that share a folder or got the same copy of it.

Leases expire by the wall clock, so machines that share a file need clocks that agree.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from flannel_udp.errors import ConfigMissing, LeaseLost, RegistryDenied, RegistryError, SubnetTaken
from flannel_udp.model import Change, Entry, Snapshot
from flannel_udp.registry.file.document import (
    Document,
    entries_of,
    entry_of,
    expiry_s,
    format_config,
    next_expiry_s,
    parse_json,
    purge_expired,
    put_entry,
)
from flannel_udp.registry.file.store import FileStore, Version
from flannel_udp.registry.outage import Outage

logger = logging.getLogger(__name__)

POLL_S = 0.2
"""How often a watch looks at the file: that works on shared folders, where inotify hears nothing of other machines."""
SETTLED_NS = 100_000_000
"""A file read sooner than this after it was modified may be modified again with the same time stamp: read it again."""
LOCK_TIMEOUT_S = 5.0
LOCK_RETRY_S = 0.01

_Result = TypeVar("_Result")


class FileRegistry:
    """See `flannel_udp.registry.Registry`.

    All file work is done in threads, and none of them ever waits for the lock: a lock that is held is tried again from
    the event loop, so a stuck process can hold up neither the loop nor our exit.
    """

    def __init__(self, path: Path) -> None:
        self._store = FileStore(path)
        # The file has no revisions. Ours count what this process has seen change, by writing it or by reading it.
        self._revision = 0
        self._numbered: dict[str, Entry] = {}
        self._writes = 0
        self._unseen: set[str] = set()  # keys we wrote since the watch looked last

    async def read_config(self) -> bytes:
        """See `Registry.read_config`."""
        document, _ = await asyncio.to_thread(self._store.read)
        config = format_config(document)
        if config is None:
            raise ConfigMissing(
                f"registry file {self._store.path} holds no network configuration: "
                "write one with `flannel-udp config put FILE`"
            )
        return config

    async def write_config(self, raw: bytes) -> None:
        """See `Registry.write_config`."""

        def change(document: Document) -> None:
            document["config"] = parse_json(raw)

        await self._update(change)

    async def assigned(self) -> None:
        """See `Registry.assigned`: hosts take their own subnets."""

    async def announce_up(self) -> None:
        """See `Registry.announce_up`: a lease says enough."""

    async def list(self) -> Snapshot:
        """See `Registry.list`."""
        document, _ = await self._read()
        return Snapshot(self._number(document), self._revision)

    async def create(self, key: str, value: bytes, ttl_s: int) -> Entry:
        """See `Registry.create`."""

        def change(document: Document) -> Entry:
            if key in document["subnets"]:
                raise SubnetTaken(f"registry file {self._store.path}: {key} is taken by another host")
            return put_entry(document, key, value, time.time() + ttl_s)

        return self._number_own(await self._update(change))

    async def renew(self, entry: Entry, value: bytes, ttl_s: int) -> Entry:
        """See `Registry.renew`. Fields of the entry that are not flannel's are kept."""

        def change(document: Document) -> Entry:
            self._require_unchanged(document, entry)
            return put_entry(document, entry.key, value, None if entry.reserved else time.time() + ttl_s)

        return self._number_own(await self._update(change))

    async def delete(self, entry: Entry) -> None:
        """See `Registry.delete`."""

        def change(document: Document) -> None:
            self._require_unchanged(document, entry)
            del document["subnets"][entry.key]

        await self._update(change)

    async def time_left_s(self, entry: Entry) -> float | None:
        """See `Registry.time_left_s`."""
        document, _ = await asyncio.to_thread(self._store.read)
        self._require_unchanged(document, entry)
        expiry = expiry_s(document["subnets"][entry.key])
        return None if expiry is None else expiry - time.time()

    async def watch(self) -> AsyncGenerator[Snapshot | Change]:
        """See `Registry.watch`. A file that cannot be read is an outage; one that does not exist is empty."""
        outage = Outage(logger)
        known: dict[str, Entry] | None = None  # None: a snapshot is due
        seen: Version | None = None
        expiry = math.inf
        while True:
            try:
                if known is None or time.time() >= expiry or await asyncio.to_thread(self._store.version) != seen:
                    document, version = await self._read()
                    entries = self._number(document)
                    # What we wrote and somebody deleted between two looks was never in `known`, and must be told.
                    vanished = dict.fromkeys(self._unseen - entries.keys())
                    self._unseen.clear()
                    expiry = next_expiry_s(document, time.time())
                    seen = version if time.time_ns() - version.mtime_ns > SETTLED_NS else None
                    outage.over()
                    if known is None:
                        yield Snapshot(entries, self._revision)
                    elif changed := _difference(known, entries) | vanished:
                        yield Change(changed, self._revision)
                    known = entries
                await asyncio.sleep(POLL_S)
            except RegistryDenied:
                raise
            except RegistryError as error:
                known = None
                await outage.wait(error)

    async def close(self) -> None:
        """See `Registry.close`: no file stays open between calls."""

    async def _update(self, change: Callable[[Document], _Result]) -> _Result:
        """Run `change` on the document without its expired entries and write it, once the lock can be had."""

        def purge_and_change(document: Document) -> _Result:
            purge_expired(document, time.time())
            return change(document)

        deadline_s = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            try:
                result = await asyncio.to_thread(self._store.update, purge_and_change)
                self._writes += 1
                return result
            except BlockingIOError:
                if time.monotonic() >= deadline_s:
                    raise RegistryError(
                        f"registry file {self._store.path}: another process holds its lock for {LOCK_TIMEOUT_S:g} s"
                    ) from None
            except ValueError as error:
                raise RegistryError(f"registry file {self._store.path}: what is to be written {error}") from None
            await asyncio.sleep(LOCK_RETRY_S)

    async def _read(self) -> tuple[Document, Version]:
        """Read the file, again if we wrote it meanwhile: what is older than our own write must not count as newer."""
        while True:
            writes = self._writes
            document, version = await asyncio.to_thread(self._store.read)
            if writes == self._writes:
                return document, version

    def _number(self, document: Document) -> dict[str, Entry]:
        """Return the living entries; those that differ from what we saw last get the next revision."""
        entries = entries_of(document, time.time())
        seen = self._numbered
        if entries.keys() != seen.keys() or not all(_alike(entry, seen[key]) for key, entry in entries.items()):
            self._revision += 1
        self._numbered = {key: self._with_revision(entry, seen.get(key)) for key, entry in entries.items()}
        return dict(self._numbered)

    def _number_own(self, entry: Entry) -> Entry:
        """Return what we just wrote with its revision: a new one, unless a watch has seen it already."""
        self._unseen.add(entry.key)
        before = self._numbered.get(entry.key)
        if before is None or not _alike(entry, before):
            self._revision += 1
        self._numbered[entry.key] = self._with_revision(entry, before)
        return self._numbered[entry.key]

    def _with_revision(self, entry: Entry, before: Entry | None) -> Entry:
        return before if before is not None and _alike(entry, before) else replace(entry, revision=self._revision)

    def _require_unchanged(self, document: Document, entry: Entry) -> None:
        current = entry_of(document, entry.key, time.time())
        if current is None or not _alike(entry, current):
            fate = "is gone" if current is None else "was written by somebody else"
            raise LeaseLost(f"registry file {self._store.path}: {entry.key} {fate}")


def _alike(entry: Entry, other: Entry) -> bool:
    """Tell whether two entries of one key say the same; the revision is no part of that."""
    return (entry.value, entry.lease_id) == (other.value, other.lease_id)


def _difference(old: dict[str, Entry], new: dict[str, Entry]) -> dict[str, Entry | None]:
    """Return what became of every key that differs; ``None`` for those that are gone."""
    return {key: new.get(key) for key in old.keys() | new.keys() if old.get(key) != new.get(key)}
