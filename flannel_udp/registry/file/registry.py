"""The registry in one JSON file: for one machine, or for several that share a folder or got the same copy of it.

Leases expire by the wall clock, so machines that share a file need clocks that agree: see `registry.file.clock`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from flannel_udp.backoff.said_once import SaidOnce
from flannel_udp.errors import ConfigMissing, LeaseLost, RegistryDenied, RegistryError, SubnetTaken
from flannel_udp.model import LEASE_TTL_S, NONCE_BITS, Change, Entry, Snapshot, lease_id_of
from flannel_udp.registry import Tell
from flannel_udp.registry.file.clock import Clock, describe_span, folder_ahead_s
from flannel_udp.registry.file.document import (
    NOBODYS_LEASE,
    Document,
    ended_of,
    entries_of,
    entry_of,
    expiries_s,
    expiry_s,
    format_config,
    furthest_ahead,
    next_expiry_s,
    parse_json,
    put_entry,
    remove_ended,
)
from flannel_udp.registry.file.store import FileStore, Version
from flannel_udp.registry.outage import Outage, keep_quiet

logger = logging.getLogger(__name__)

POLL_S = 0.2
"""How often a watch looks at the file: that works on shared folders, where inotify hears nothing of other machines."""
SETTLED_NS = 100_000_000
"""A file read sooner than this after it was modified may be modified again with the same time stamp: read it again."""
LOCK_TIMEOUT_S = 5.0
LOCK_RETRY_S = 0.01

BEFORE_OURS = 0
"""The revision of what was written before our own last write: the file was replaced by an older one."""

_Result = TypeVar("_Result")


class _Written(NamedTuple):
    """An entry that we wrote, and when it ends; ``None``: never."""

    entry: Entry
    ends_s: float | None

    def is_newer_than(self, other: Entry, ends_s: float | None) -> bool:
        """Tell whether another lease under its key was written before it: who takes a subnet has it for longer.

        A host whose clock is behind ours may have written it after us. It sees what we do then, and yields.
        """
        if other.lease_id == self.entry.lease_id or ends_s is None:
            return False
        return self.ends_s is None or ends_s < self.ends_s


class FileRegistry:
    """See `flannel_udp.registry.Registry`.

    All file work is done in threads, and none of them ever waits for the lock: a lock that is held is tried again from
    the event loop, so a stuck process can hold up neither the loop nor our exit.
    """

    def __init__(self, path: Path, mark: int = 0, *, in_use: bool = False) -> None:
        self._store = FileStore(path, was_there=in_use)
        self._mark = mark
        self._clock = Clock()
        self._clocks_apart = ""  # what was said of it last
        # The file has no revisions. Ours count what this process has seen change, by writing it or by reading it.
        self._revision = 0
        self._numbered: dict[str, Entry] = {}
        self._writes = 0
        self._unseen: set[str] = set()  # keys we wrote since the watch looked last
        self._own: dict[str, _Written] = {}  # what we wrote last under a key
        self._caveats = SaidOnce()
        self._unwritable = SaidOnce()

    async def read_config(self) -> bytes:
        """See `Registry.read_config`."""
        document, version = await asyncio.to_thread(self._store.read)
        config = format_config(document)
        if config is None:
            path = self._store.path
            there = version != Version()
            raise ConfigMissing(
                f"registry file {path} {'' if there else 'does not exist and so '}holds no network configuration: "
                f"{'' if there else 'copy the one of the other hosts there, or '}"
                f"write one with `flannel-udp config put FILE --registry=file:{path}`"
            )
        return config

    async def write_config(self, raw: bytes) -> None:
        """See `Registry.write_config`."""

        def change(document: Document) -> None:
            document["config"] = parse_json(raw)

        await self._update(change)

    async def assigned(self) -> None:
        """See `Registry.assigned`: hosts take their own subnets."""

    def count_families(self, versions: Collection[int]) -> None:
        """See `Registry.count_families`: keys are the hosts'."""

    async def announce_up(self) -> None:
        """See `Registry.announce_up`: a lease says enough."""

    async def list(self) -> Snapshot:
        """See `Registry.list`."""
        document, _ = await self._read()
        return Snapshot(self._number(document), self._revision, ended_of(document, self._clock.now_s()))

    async def create(self, key: str, value: bytes, ttl_s: int) -> Entry:
        """See `Registry.create`."""

        def change(document: Document) -> _Written:
            self._refuse_clocks_apart(document)
            self._require_free(document, key)
            return _put(document, key, value, self._clock.now_s() + ttl_s, self._new_lease_id())

        await asyncio.to_thread(self._refuse_folders_clock)
        return self._note_written(await self._update(change))

    async def take(self, entry: Entry, value: bytes, ttl_s: int) -> Entry:
        """See `Registry.take`."""
        if entry.reserved:
            return await self.renew(entry, value, ttl_s)

        def change(document: Document) -> _Written:
            self._require_unchanged(document, entry)
            self._refuse_clocks_apart(document)
            return _put(document, entry.key, value, self._clock.now_s() + ttl_s, self._new_lease_id())

        await asyncio.to_thread(self._refuse_folders_clock)
        return self._note_written(await self._update(change))

    async def renew(self, entry: Entry, value: bytes, ttl_s: int) -> Entry:
        """See `Registry.renew`. Fields of the entry that are not flannel's are kept.

        What says the same already and only cannot be written, for the disk is full, say, is ours until it ends.
        """

        def change(document: Document) -> _Written:
            self._require_unchanged(document, entry)
            expires_s = None if entry.reserved else self._clock.now_s() + ttl_s
            return _put(document, entry.key, value, expires_s, entry.lease_id)

        try:
            written = await self._update(change)
        except LeaseLost:
            raise
        except RegistryError as error:
            if value != entry.value:
                raise
            return self._number_own(await self._not_prolonged(entry, error))
        if self._unwritable.worked():
            logger.info("registry file %s can be written again", self._store.path)
        return self._note_written(written)

    async def _not_prolonged(self, entry: Entry, error: RegistryError) -> Entry:
        """Return the entry as it is and say until when. Raises `RegistryError` if it cannot be read, `LeaseLost`."""
        left_s = await self.time_left_s(entry)
        if self._unwritable.failed(str(error)):
            until = "" if left_s is None else f" until its lease ends in {left_s / 60:.0f} min, or it can be written"
            logger.error("%s; %s stays ours%s", error, entry.key, until)
        return entry

    async def move(self, entry: Entry, key: str, value: bytes) -> Entry:
        """See `Registry.move`. Fields of the entry that are not flannel's go along."""

        def change(document: Document) -> _Written:
            self._require_unchanged(document, entry)
            self._require_free(document, key)
            document["subnets"][key] = document["subnets"].pop(entry.key)
            return _put(document, key, value, expiry_s(document["subnets"][key]), entry.lease_id)

        moved = self._note_written(await self._update(change))
        self._own.pop(entry.key, None)
        self._unseen.add(entry.key)
        return moved

    async def reserve(self, key: str, value: bytes, entry: Entry | None) -> Entry:
        """See `Registry.reserve`. Fields of the entry that are not flannel's are kept."""

        def change(document: Document) -> _Written:
            if entry is None:
                self._require_free(document, key)
            else:
                self._require_unchanged(document, entry)
            return _put(document, key, value, None, 0)

        return self._note_written(await self._update(change))

    async def delete(self, entry: Entry) -> None:
        """See `Registry.delete`."""

        def change(document: Document) -> None:
            self._require_unchanged(document, entry)
            del document["subnets"][entry.key]

        await self._update(change)
        self._own.pop(entry.key, None)

    async def time_left_s(self, entry: Entry) -> float | None:
        """See `Registry.time_left_s`. Never more than a lease is granted for, should our clock have been put back."""
        document, _ = await asyncio.to_thread(self._store.read)
        self._clock.look(expiries_s(document))
        self._require_unchanged(document, entry)
        return self._left_s(document["subnets"][entry.key])

    async def times_left_s(
        self, entries: Collection[Entry], told: Callable[[int], object] = lambda _n: None
    ) -> dict[str, float | None]:
        """See `Registry.times_left_s`."""
        document, _ = await asyncio.to_thread(self._store.read)
        self._clock.look(expiries_s(document))
        subnets = document["subnets"]
        left = {entry.key: self._left_s(subnets[entry.key]) for entry in entries if entry.key in subnets}
        told(len(left))
        return left

    def _left_s(self, fields: object) -> float | None:
        expiry = expiry_s(fields)
        return None if expiry is None else min(expiry - self._clock.now_s(), float(LEASE_TTL_S))

    def adopt(self, entry: Entry) -> None:
        """See `Registry.adopt`: what comes after it is newer by our count, too."""
        self._revision = entry.revision
        self._numbered = {entry.key: entry}

    async def watch(self, tell: Tell = keep_quiet) -> AsyncGenerator[Snapshot | Change]:
        """See `Registry.watch`. A file that cannot be read, or is gone, is an outage; one that never was is empty."""
        outage = Outage(logger, tell)
        known: dict[str, Entry] | None = None  # None: a snapshot is due
        seen: Version | None = None
        expiry = math.inf
        while True:
            try:
                due = known is None or self._clock.now_s() >= expiry
                if due or await asyncio.to_thread(self._store.version) != seen:
                    document, version = await self._read()
                    entries = self._number(document)
                    # What we wrote and somebody deleted between two looks was never in `known`, and must be told.
                    vanished = dict.fromkeys(self._unseen - entries.keys())
                    self._unseen.clear()
                    expiry = next_expiry_s(document, self._clock.now_s())
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
        """Run `change` on the document and write it, once the lock can be had."""

        def look_and_change(document: Document) -> _Result:
            self._clock.look(expiries_s(document))
            return change(document)

        deadline_s = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            try:
                result = await asyncio.to_thread(self._store.update, look_and_change)
                self._writes += 1
                self._say_caveat()
                return result
            except BlockingIOError:
                if time.monotonic() >= deadline_s:
                    holder = await asyncio.to_thread(self._store.describe_lock_holder)
                    held = f"another process holds its lock for {LOCK_TIMEOUT_S:g} s{holder}"
                    raise RegistryError(f"registry file {self._store.path}: {held}") from None
            except ValueError as error:
                raise RegistryError(f"registry file {self._store.path}: what is to be written {error}") from None
            await asyncio.sleep(LOCK_RETRY_S)

    def _say_caveat(self) -> None:
        caveat = self._store.caveat
        if caveat is not None and self._caveats.failed(caveat):
            logger.warning("registry file %s: %s", self._store.path, caveat)

    async def _read(self) -> tuple[Document, Version]:
        """Read the file, again if we wrote it meanwhile: what is older than our own write must not count as newer."""
        while True:
            writes = self._writes
            document, version = await asyncio.to_thread(self._store.read)
            if writes == self._writes:
                self._clock.look(expiries_s(document))
                self._say_clocks_apart(document)
                return document, version

    def _number(self, document: Document) -> dict[str, Entry]:
        """Return the living entries; those that differ from what we saw last get the next revision."""
        entries = entries_of(document, self._clock.now_s())
        seen = self._numbered
        if entries.keys() != seen.keys() or not all(_alike(entry, seen[key]) for key, entry in entries.items()):
            self._revision += 1
        self._numbered = {key: self._with_revision(entry, seen.get(key)) for key, entry in entries.items()}
        for key, own in self._own.items():
            entry = self._numbered.get(key)
            if entry is not None and own.is_newer_than(entry, expiry_s(document["subnets"][key])):
                self._numbered[key] = replace(entry, revision=BEFORE_OURS)
        return dict(self._numbered)

    def _note_written(self, written: _Written) -> Entry:
        """Return what we just wrote with its revision, and know it again."""
        self._own[written.entry.key] = written
        return self._number_own(written.entry)

    def _number_own(self, entry: Entry) -> Entry:
        """Return what is ours with its revision: a new one, unless a watch has seen it already."""
        self._unseen.add(entry.key)
        before = self._numbered.get(entry.key)
        if before is None or not _alike(entry, before):
            self._revision += 1
        self._numbered[entry.key] = self._with_revision(entry, before)
        return self._numbered[entry.key]

    def _with_revision(self, entry: Entry, before: Entry | None) -> Entry:
        return before if before is not None and _alike(entry, before) else replace(entry, revision=self._revision)

    def _require_free(self, document: Document, key: str) -> None:
        """Remove what ended and is in the way of `key`. Raises `SubnetTaken` if that is somebody's."""
        remove_ended(document, key, self._clock.now_s())
        if key in document["subnets"]:
            raise SubnetTaken(f"registry file {self._store.path}: {key} is taken by another host")

    def _require_unchanged(self, document: Document, entry: Entry) -> None:
        current = entry_of(document, entry.key, self._clock.now_s())
        if current is None or not _alike(entry, current):
            fate = "is gone" if current is None else "was written by somebody else"
            raise LeaseLost(f"registry file {self._store.path}: {entry.key} {fate}")

    def _new_lease_id(self) -> int:
        return lease_id_of(self._mark, secrets.randbits(NONCE_BITS)) if self._mark else NOBODYS_LEASE

    # Clocks

    def _refuse_folders_clock(self) -> None:
        """Raise `RegistryError` if our clock is off by more than a lease's life; may block."""
        ahead_s = folder_ahead_s(self._store.path.parent)
        if ahead_s is not None and abs(ahead_s) > LEASE_TTL_S:
            raise RegistryError(
                f"registry file {self._store.path}: the clock of this host is {describe_span(-ahead_s)} from that of "
                "its folder, and leases end by the clock: set it right (timedatectl)"
            )

    def _refuse_clocks_apart(self, document: Document) -> None:
        apart = self._describe_clocks_apart(document)
        if apart:
            raise RegistryError(apart)

    def _say_clocks_apart(self, document: Document) -> None:
        """Warn once of a host whose clock is further ahead than a lease lives: in its eyes ours is over."""
        apart = self._describe_clocks_apart(document)
        if apart and not self._clocks_apart:
            logger.warning("%s", apart)
        self._clocks_apart = apart

    def _describe_clocks_apart(self, document: Document) -> str:
        found = furthest_ahead(document, self._clock.now_s())
        if found is None or found[1] <= LEASE_TTL_S:
            return ""
        return (
            f"registry file {self._store.path}: the clock of {found[0]} is {describe_span(found[1])} from ours, and "
            "leases end by the clock: set both right (timedatectl), or remove that entry if its host is gone"
        )


def _put(document: Document, key: str, value: bytes, expires_s: float | None, lease_id: int) -> _Written:
    entry = put_entry(document, key, value, expires_s, lease_id)
    return _Written(entry, expiry_s(document["subnets"][key]))


def _alike(entry: Entry, other: Entry) -> bool:
    """Tell whether two entries of one key say the same; the revision is no part of that."""
    return (entry.value, entry.lease_id) == (other.value, other.lease_id)


def _difference(old: dict[str, Entry], new: dict[str, Entry]) -> dict[str, Entry | None]:
    """Return what became of every key that differs; ``None`` for those that are gone."""
    return {key: new.get(key) for key in old.keys() | new.keys() if old.get(key) != new.get(key)}
