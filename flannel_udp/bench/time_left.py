"""How long a bench still takes, from how long it took so far."""

from __future__ import annotations

import time
from collections.abc import Callable


class TimeLeft:
    """Says what is left, by the pace so far: samples that are taken twice, say, make it slower than planned."""

    def __init__(self, nominal_s: float, now: Callable[[], float] = time.monotonic) -> None:
        """Begin now; `nominal_s` is what the whole should take."""
        self._nominal_s, self._now = nominal_s, now
        self._started_s, self._passed_s = now(), 0.0

    def passed(self, nominal_s: float) -> None:
        """Take note of a part that is done, by what it should have taken."""
        self._passed_s += nominal_s

    def __str__(self) -> str:
        """Return it for people: `about 40 s`, `about 12 min`."""
        pace = (self._now() - self._started_s) / self._passed_s if self._passed_s else 1.0
        left_s = max(self._nominal_s - self._passed_s, 0.0) * pace
        return f"about {left_s:.0f} s" if left_s < 120 else f"about {left_s / 60:.0f} min"
