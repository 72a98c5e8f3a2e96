"""The plot of round trips: how many took how long, a histogram a contender, and where its percentiles are. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping

from flannel_udp.bench.drawing import axis, frame_of, legend, log_ticks, logarithmic, svg, text_at
from flannel_udp.bench.latency import Histogram, percentile
from flannel_udp.bench.metrics import PERCENTILES, is_ours
from flannel_udp.bench.sheets import figure

_ROW, _TALLEST = 80, 56
"""Height of a contender's row, and of a bar that stands for all of its round trips."""
_BARS = 96
"""How many of them share the axis."""
_LEAST = 1e-4
"""The share of the round trips at which a bar begins; rarer ones have a stub."""
_STUB = 1.5
_SHARES = (1.0, 0.01, _LEAST)
_MARKS = (
    '<circle class="same" r="4.5"/>',
    '<path class="same" d="M0 -6L5 0L0 6L-5 0Z"/>',
    '<path class="same" d="M0 -6L6 5H-6Z"/>',
)
"""Of the percentiles, in their order."""


def latency_plot(title: str, found: Mapping[str, Histogram], key: str) -> str:
    """Return a row for each contender: bars as high as the share of its round trips, on two logarithmic axes.

    `key` is the picture's alone on its page.
    """
    times_us = [time_us for each in found.values() for time_us in each]
    ticks = log_ticks(min(times_us), max(times_us) + 1)
    frame = frame_of(found, logarithmic(ticks), ticks, _ROW)
    parts = axis(frame, "round trip, µs (logarithmic); height: share of the pings (logarithmic)")
    described = []
    for row, (contender, times) in enumerate(found.items()):
        base = frame.middle(row) + _ROW / 2 - 12
        parts.append(text_at(frame.left - 8, base - 4, contender, "end"))
        for share in _SHARES:
            y = base - _height(share) * (share > _LEAST)
            parts.append(f'<path class="grid" d="M{frame.left} {y:.1f}H{frame.at(ticks[-1]):.1f}"/>')
            parts.append(text_at(frame.at(ticks[-1]) + 6, y + 4, f"{100 * share:g} %", kind="tick"))
        width = (frame.at(ticks[-1]) - frame.left) / _BARS
        whose = "ours" if is_ours(contender) else "theirs"
        parts += [
            f'<rect class="{whose}" x="{frame.left + at * width:.1f}" y="{base - height:.1f}" '
            f'width="{width:.1f}" height="{height:.1f}"/>'
            for at, height in _bars(times, logarithmic(ticks))
        ]
        percentiles = {said: percentile(times, percent) for said, percent in PERCENTILES.values()}
        for mark, time_us in zip(_MARKS, percentiles.values(), strict=True):
            parts.append(f'<g transform="translate({frame.at(time_us):.1f} {base:.1f})">{mark}</g>')
        told = ", ".join(f"{said} {figure(time_us)} µs" for said, time_us in percentiles.items())
        described.append(f"{contender}: {sum(times.values()):,} pings, {told}, longest {figure(max(times))} µs")
    marks = [
        ('<rect class="ours" width="18" height="12"/>', "ours"),
        ('<rect class="theirs" width="18" height="12"/>', "another"),
        *(
            (f'<g transform="translate(9 6)">{mark}</g>', said)
            for mark, (said, _) in zip(_MARKS, PERCENTILES.values(), strict=True)
        ),
    ]
    return svg(frame, [*parts, *legend(frame, marks)], title, "; ".join(described), key)


def _bars(times: Histogram, share: Callable[[float], float]) -> list[tuple[int, float]]:
    """Return which bars there are and how high each is; `share` is where on the axis a time is."""
    counts: Counter[int] = Counter()
    for time_us, n in times.items():
        counts[min(int(share(time_us) * _BARS), _BARS - 1)] += n
    total = sum(times.values())
    return [(bar, _height(n / total)) for bar, n in sorted(counts.items())]


def _height(share: float) -> float:
    """Return how high the bar of a share is, a stub where it is rare."""
    return max(_TALLEST * math.log(share / _LEAST) / math.log(1 / _LEAST), _STUB)
