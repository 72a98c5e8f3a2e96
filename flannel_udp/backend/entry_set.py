"""Entries of a device of ours kept as data, neighbours or forwarding entries: applied as differences, and kept right.

The device is nobody else's, so every entry there that was set, and not learned, is ours: what is not wanted goes.
Methods make messages or take what the kernel said of them; who calls them sends those of several sets in one batch.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from flannel_udp.host.monitor import OwnEntries
from flannel_udp.host.neighbours import Table, TableReader, delete_entry, set_entry
from flannel_udp.host.repair import Paces
from flannel_udp.host.rtnetlink import Message, Refusal, Rtnetlink


class Step(NamedTuple):
    """One message about an entry."""

    key: bytes
    message: Message


class EntrySet:
    """The wanted entries of one table, and what keeps some of them out of the kernel."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self._reader = TableReader(table)
        self._wanted: dict[bytes, bytes] = {}
        self._surplus: set[bytes] = set()  # in the kernel, and not wanted any more
        self._paces = Paces()
        self.refused: dict[bytes, Refusal] = {}
        """Wanted entries that the kernel did not take."""
        self.contested: frozenset[bytes] = frozenset()
        """Wanted entries that somebody takes away again and again."""

    def want(self, changes: Mapping[bytes, bytes | None]) -> set[bytes]:
        """Want these as well, in place of former ones; ``None``: no more. Return the keys of those to be set."""
        to_set = set()
        for key, value in changes.items():
            former = self._wanted.get(key)
            if value is None:
                if former is not None:
                    del self._wanted[key]
                    self._surplus.add(key)
                    self.refused.pop(key, None)
            elif value != former:
                self._wanted[key] = value
                self._surplus.discard(key)
                to_set.add(key)
        return to_set

    def wants(self, key: bytes) -> bytes | None:
        """Return what an entry has to say, ``None`` where there is to be none."""
        return self._wanted.get(key)

    def interest(self, index: int) -> OwnEntries:
        """Return which news concern the entries on the device of this index."""
        return OwnEntries(self.table, index, self._wanted.get)

    def find_wrong(self, netlink: Rtnetlink, index: int) -> set[bytes]:
        """Read what is on the device; return the keys of which one has to be set. Raises `OSError`.

        What is not wanted goes with `cleaning`.
        """
        present = self._reader.read(netlink, index)
        self._surplus = present.keys() - self._wanted.keys()
        return {key for key, value in self._wanted.items() if present.get(key) != value}

    def due(self, wrong: set[bytes]) -> set[bytes]:
        """Return those that may be put right now, see `host.repair.Paces`."""
        now_s = time.monotonic()
        self._paces.looked(wrong, now_s)
        due = {key for key in wrong if self._paces.due(key, now_s)}
        self.contested = frozenset(wrong - due)
        return due

    def setting(self, index: int, keys: Iterable[bytes]) -> list[Step]:
        """Return what sets these: send it, and `note` what came of it."""
        return [Step(key, set_entry(self.table, index, key, self._wanted[key])) for key in keys if key in self._wanted]

    def cleaning(self, index: int) -> list[Step]:
        """Return what removes all that is not wanted: send it, and `note_cleaned` what came of it."""
        surplus, self._surplus = self._surplus, set()
        return [Step(key, delete_entry(self.table, index, key)) for key in surplus]

    def note(self, steps: Iterable[Step], refusals: Iterable[Refusal | None]) -> set[bytes]:
        """Take note of what became of setting these; return the keys that the kernel took."""
        taken = set()
        for step, refusal in zip(steps, refusals, strict=True):
            if refusal is None:
                taken.add(step.key)
                self.refused.pop(step.key, None)
            else:
                self.refused[step.key] = refusal
        return taken

    def note_repaired(self, keys: Iterable[bytes]) -> None:
        """Take note that these were put right: one that is taken away again and again has to wait for it."""
        now_s = time.monotonic()
        for key in keys:
            self._paces.made(key, now_s)

    def note_cleaned(self, steps: Iterable[Step], refusals: Iterable[Refusal | None]) -> None:
        """Take note of what became of removing these: what is still there is tried again."""
        gone = (errno.ENOENT, errno.ENODEV)
        for step, refusal in zip(steps, refusals, strict=True):
            if refusal is not None and refusal.code not in gone and step.key not in self._wanted:
                self._surplus.add(step.key)

    @property
    def again_s(self) -> float | None:
        """After how many seconds a repair is due again of what was put off, ``None``: nothing was."""
        return self._paces.again_s(time.monotonic())
