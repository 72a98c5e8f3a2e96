"""Two readings of counters, and what passed a second between them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic

OLDEST_S = 5.0
"""A reading from before a pause says nothing of what passes now."""


class Rates:
    """Knows the last reading of each counter."""

    def __init__(self) -> None:
        self._before: Mapping[str, int] = {}
        self._at_s = float("-inf")

    def since_last(self, now: Mapping[str, int], at_s: float | None = None) -> dict[str, float | None]:
        """Return by how much each counter grew a second; ``None`` for one that is new, or has begun anew.

        `at_s` is when they were read, on a monotonic clock.
        """
        at_s = monotonic() if at_s is None else at_s
        took_s, before = at_s - self._at_s, self._before
        self._before, self._at_s = dict(now), at_s
        if not 0 < took_s <= OLDEST_S:
            return dict.fromkeys(now)
        return {
            name: round((count - before[name]) / took_s, 1) if before.get(name, count + 1) <= count else None
            for name, count in now.items()
        }
