"""The kernel's table of connections, which the masquerade and many a firewall have it keep: full, it drops new ones.

No counter of an interface, a socket or ours has these packets. How many there may be is one number for the whole
machine, how many there are is each network namespace's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from flannel_udp.model import Degradation

SETTINGS = Path("/proc/sys/net/netfilter")
LOOK_EVERY_S = 10.0
NEARLY_FULL = 0.9


class Connections(NamedTuple):
    """How many there are in this namespace, and how many there may be."""

    present: int
    most: int

    @property
    def full(self) -> bool:
        """Whether the next one is dropped, unless the kernel finds one to forget; there may be any number with 0."""
        return 0 < self.most <= self.present

    @property
    def nearly_full(self) -> bool:
        """Whether that may be so soon."""
        return self.present >= NEARLY_FULL * self.most > 0

    @property
    def fault(self) -> str:
        """What is said of a full one: always the same, and not how many there are just now."""
        return (
            f"conntrack's table is full ({self.most:,} connections): new connections of pods are dropped: {self.remedy}"
        )

    @property
    def remedy(self) -> str:
        """The command that makes it larger; only outside of all containers may it be given."""
        return f"sysctl -w net.netfilter.nf_conntrack_max={2 * self.most}"


def read_connections(settings: Path = SETTINGS) -> Connections | None:
    """Ask the kernel; ``None`` where it keeps no such table. Raises `OSError` where there is no descriptor for that."""
    try:
        count, most = (int((settings / f"nf_conntrack_{name}").read_text()) for name in ("count", "max"))
    except FileNotFoundError:
        return None
    return Connections(count, most)


class ConntrackWatch:
    """Looks at it every `LOOK_EVERY_S` seconds; `note` is told what is wrong, see `Conditions.note`."""

    def __init__(self, note: Callable[[str, Sequence[Degradation]], None], settings: Path = SETTINGS) -> None:
        self._note = note
        self._settings = settings
        self._told: Connections | None = None

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    def look(self) -> None:
        """Note a full one until there is some room again: at the edge connections come and go all the time."""
        with suppress(OSError):
            found = read_connections(self._settings)
            if found is not None and found.full:
                self._told = found
            elif found is None or not found.nearly_full:
                self._told = None
            self._note("conntrack", () if self._told is None else [Degradation("host", self._told.fault)])
