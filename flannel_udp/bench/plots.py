"""Plots as inline SVG: lines, axes with ticks and units, a legend each. Colours are the page's: classes, no values.

Colour never stands alone: who it is stands at the left of a row, which way a ratio goes is the shape of its mark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from flannel_udp.bench import judging
from flannel_udp.bench.judging import BETTER, WORSE
from flannel_udp.bench.metrics import Metric, is_ours
from flannel_udp.bench.samples import Series
from flannel_udp.bench.sheets import INTERVAL, figure

_WIDTH = 720
"""Units of the drawing, which the page scales to what it has."""
_ROW, _TOP, _AXIS = 26, 8, 64
"""Height of a row, of what is above the first one, and of axis, title and legend below the last one."""
_CHARACTER = 7.2
"""About as wide as one character of a label."""
_RIGHT = 84
"""Of the plot: where a figure stands that is at its end."""
_N_TICKS = 6


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where things are: rows from the top, values from the left."""

    labels: int
    n_rows: int
    at: Callable[[float], float]
    ticks: Sequence[float]

    @property
    def bottom(self) -> int:
        return _TOP + _ROW * self.n_rows

    def middle(self, row: int) -> float:
        return _TOP + _ROW * (row + 0.5)


def spread_plot(metric: Metric, found: Mapping[str, Series], key: str) -> str:
    """Return a row for each contender: its median as a bar from 0, the quartiles as a line, each sample as a dot.

    `key` is the picture's alone on its page.
    """
    values = [value for series in found.values() for value in series.values()]
    ticks = _linear_ticks(max(values, default=0.0))
    frame = _frame(found, lambda share: share / ticks[-1], ticks)
    parts = _axis(frame, metric.label)
    for row, (contender, series) in enumerate(found.items()):
        y, spread = frame.middle(row), judging.spread_of(series)
        whose = "ours" if is_ours(contender) else "theirs"
        parts.append(_text(frame.labels - 8, y + 4, contender, "end"))
        if spread.median is None:
            parts.append(_text(frame.labels + 6, y + 4, "every sample was rejected"))
            continue
        left, right = frame.at(0), frame.at(spread.median)
        parts.append(f'<rect class="{whose}" x="{left:.1f}" y="{y - 8:.1f}" width="{right - left:.1f}" height="16"/>')
        if spread.quartiles:
            first, third = map(frame.at, spread.quartiles)
            parts.append(f'<path class="quartiles" d="M{first:.1f} {y - 5:.1f}v10m0 -5H{third:.1f}m0 -5v10"/>')
        parts += [
            f'<circle class="sample" cx="{frame.at(value):.1f}" cy="{y:.1f}" r="2.6"/>' for value in series.values()
        ]
        last = max(frame.at(value) for value in series.values())
        parts.append(_text(last + 8, y + 4, figure(spread.median), "start", "figure"))
    legend = [
        ('<rect class="ours" width="18" height="12"/>', "median of ours"),
        ('<rect class="theirs" width="18" height="12"/>', "of another"),
        ('<path class="quartiles" d="M1 1v10m0 -5h16m0 -5v10"/>', "quartiles"),
        ('<circle class="sample" cx="9" cy="6" r="2.6"/>', "one sample"),
    ]
    described = ", ".join(
        f"{who} {figure(judging.spread_of(series).median or 0)}" for who, series in found.items() if series
    )
    return _svg(frame, [*parts, *_legend(frame, legend)], f"{metric.label}: medians", described, key)


def ratio_plot(rows: Sequence[judging.Row], key: str) -> str:
    """Return how many times better ours is than each other contender, with the intervals, on a logarithmic axis."""
    drawn = {f"{row.metric.title}, to {row.contender}": row for row in rows if row.ratio}
    better = {label: _times_better(row) for label, row in drawn.items()}
    ends = [end for _, low, high in better.values() for end in (low, high)]
    ticks = _log_ticks(min([*ends, 0.5]), max([*ends, 2.0]))
    low, span = math.log(ticks[0]), math.log(ticks[-1] / ticks[0])
    frame = _frame(better, lambda value: (math.log(value) - low) / span, ticks)
    parts = _axis(frame, "times better (logarithmic): right of 1 ours is better, also where less is")
    parts.append(f'<path class="one" d="M{frame.at(1):.1f} {_TOP}V{frame.bottom}"/>')
    for number, (label, (times, low_end, high_end)) in enumerate(better.items()):
        y, x = frame.middle(number), frame.at(times)
        parts.append(_text(frame.labels - 8, y + 4, label, "end"))
        from_x, to_x = frame.at(low_end), frame.at(high_end)
        parts.append(f'<path class="interval" d="M{from_x:.1f} {y - 4:.1f}v8m0 -4H{to_x:.1f}m0 -4v8"/>')
        parts.append(f'<g transform="translate({x:.1f} {y:.1f})">{_mark(drawn[label].verdict)}</g>')
    legend = [
        (f'<g transform="translate(9 6)">{_mark(BETTER)}</g>', "ours is better"),
        (f'<g transform="translate(9 6)">{_mark(WORSE)}</g>', "ours is worse"),
        (f'<g transform="translate(9 6)">{_mark("")}</g>', "no difference"),
        ('<path class="interval" d="M1 2v8m0 -4h16m0 -4v8"/>', f"{INTERVAL} interval"),
    ]
    described = ", ".join(f"{label} {times:.2f}" for label, (times, _, _) in better.items())
    return _svg(frame, [*parts, *_legend(frame, legend)], "Ours beside the others: times better", described, key)


def _times_better(row: judging.Row) -> tuple[float, float, float]:
    """Return the ratio and its interval, turned over where less is better."""
    assert row.ratio is not None  # noqa: S101 - what has none is not drawn
    ends = (row.ratio.ratio, row.ratio.low, row.ratio.high)
    return ends if row.metric.higher_is_better else (1 / ends[0], 1 / ends[2], 1 / ends[1])


def _mark(verdict: str) -> str:
    """Return a triangle that points to where ours is, or a ring between."""
    if verdict == BETTER:
        return '<path class="better" d="M-5 -6L7 0L-5 6Z"/>'
    return '<path class="worse" d="M5 -6L-7 0L5 6Z"/>' if verdict == WORSE else '<circle class="same" r="4.5"/>'


def _frame(labels: Iterable[str], share: Callable[[float], float], ticks: Sequence[float]) -> _Frame:
    names = list(labels)
    left = int(_CHARACTER * max(map(len, names), default=0)) + 16
    return _Frame(left, len(names), lambda value: left + (_WIDTH - _RIGHT - left) * share(value), ticks)


def _axis(frame: _Frame, title: str) -> list[str]:
    left, right, y = frame.at(frame.ticks[0]), frame.at(frame.ticks[-1]), frame.bottom
    parts = [f'<path class="axis" d="M{left:.1f} {y}H{right:.1f}"/>']
    for tick in frame.ticks:
        parts.append(f'<path class="grid" d="M{frame.at(tick):.1f} {_TOP}V{y + 4}"/>')
        parts.append(_text(frame.at(tick), y + 17, f"{tick:,g}", "middle", "tick"))
    parts.append(_text((left + right) / 2, y + 34, title, "middle", "tick"))
    return parts


def _legend(frame: _Frame, entries: Sequence[tuple[str, str]]) -> list[str]:
    parts, x, y = [], 8.0, frame.bottom + 44
    for mark, said in entries:
        parts.append(f'<g transform="translate({x:.1f} {y})">{mark}</g>')
        parts.append(_text(x + 24, y + 11, said, "start", "tick"))
        x += 24 + _CHARACTER * len(said) + 20
    return parts


def _svg(frame: _Frame, parts: Sequence[str], title: str, described: str, key: str) -> str:
    height = frame.bottom + _AXIS
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-labelledby="{key}-title {key}-told">'
        f'<title id="{key}-title">{escape(title)}</title><desc id="{key}-told">{escape(described)}</desc>'
        f"{''.join(parts)}</svg>"
    )


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "label") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _linear_ticks(largest: float) -> list[float]:
    """Return round numbers from 0 to the first one that is not below the largest value."""
    if largest <= 0:
        return [0.0, 1.0]
    rough = largest / (_N_TICKS - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    return [round(n * step, 12) for n in range(math.ceil(largest / step * 0.999) + 1)]


def _log_ticks(lowest: float, highest: float) -> list[float]:
    """Return 1, 2 and 5 of each power of ten from the last one that is not above the lowest value."""
    first, last = math.floor(math.log10(lowest)), math.ceil(math.log10(highest))
    every = [factor * 10.0**power for power in range(first, last + 1) for factor in (1, 2, 5)]
    below = max(tick for tick in every if tick <= lowest)
    above = min(tick for tick in every if tick >= highest)
    return [tick for tick in every if below <= tick <= above]
