"""Latency histograms: how many round trips took how long. Pure.

`ping` prints three digits, and whole microseconds at the finest. So a count for each time that it printed is the whole
truth already, in no more buckets than an HDR histogram of that precision has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

Histogram = Mapping[int, int]
"""Microseconds → how many round trips took as long."""


def histogram(times_us: Iterable[float]) -> dict[int, int]:
    """Return how many took how long, the shortest first; less than a microsecond is one."""
    return dict(sorted(Counter(max(round(time_us), 1) for time_us in times_us).items()))


def merged(histograms: Iterable[Histogram]) -> dict[int, int]:
    """Return one for all round trips of several."""
    total: Counter[int] = Counter()
    for each in histograms:
        total.update(each)
    return dict(sorted(total.items()))


def percentile(of: Histogram, percent: float) -> int:
    """Return the shortest time that at least `percent` of the round trips did not exceed (nearest rank)."""
    needed = sum(of.values()) * percent / 100
    seen = 0
    for time_us, n in sorted(of.items()):
        seen += n
        if seen >= needed:
            return time_us
    raise ValueError("there is no round trip")
