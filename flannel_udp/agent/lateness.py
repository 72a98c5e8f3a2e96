"""How late the event loop is: how long one task holds up all others, that of the lease and answers among them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

EVERY_S = 1.0
"""Between two looks. A task that holds the loop up for longer is seen for sure, a shorter one now and then."""
BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Upper bounds of the histogram's classes; the loop's timers are late by a millisecond or two at any time."""


class Lateness:
    """A histogram of how much later than it wanted a timer of the event loop was called."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self._timer: asyncio.TimerHandle | None = None
        self.total_s = 0.0
        """The sum of all that was seen."""

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Measure the running loop meanwhile."""
        self._wait()
        try:
            yield
        finally:
            if self._timer is not None:
                self._timer.cancel()

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(EVERY_S, self._look, monotonic() + EVERY_S)

    def _look(self, due_s: float) -> None:
        self.note(max(0.0, monotonic() - due_s))  # a timer in whole milliseconds may be early
        self._wait()

    def note(self, late_s: float) -> None:
        """Take note of one look."""
        self._counts[sum(late_s > bound for bound in BOUNDS_S)] += 1
        self.total_s += late_s

    def buckets(self) -> list[tuple[float, int]]:
        """Return each class's upper bound and how many were no later than that, the last one's infinite."""
        seen = 0
        found = []
        for bound, count in zip((*BOUNDS_S, float("inf")), self._counts, strict=True):
            seen += count
            found.append((bound, seen))
        return found
