"""What plots are drawn with: a frame of rows, an axis with ticks and its title, a legend, marks; inline SVG. Pure.

Colours are the page's: classes, no values. They never stand alone: who it is stands at the left of a row, what a mark
says is its shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH = 720
"""Units of the drawing, which the page scales to what it has."""
TOP, _ROW, _AXIS = 8, 26, 64
"""Height of what is above the first row, of a row, and of axis, title and legend below the last one."""
_CHARACTER = 7.2
"""About as wide as one character of a label."""
_RIGHT = 84
"""Of the plot: where a figure stands that is at its end."""
_N_TICKS, _N_LOG_TICKS = 6, 9
"""How many at most have room for their figures below the axis."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Where things are: rows from the top, values from the left; `left` is where labels end."""

    left: int
    n_rows: int
    row: int
    at: Callable[[float], float]
    ticks: Sequence[float]

    @property
    def bottom(self) -> int:
        """Where the axis is."""
        return TOP + self.row * self.n_rows

    def middle(self, row: int) -> float:
        """Return the height of a row's middle."""
        return TOP + self.row * (row + 0.5)


def frame_of(labels: Iterable[str], share: Callable[[float], float], ticks: Sequence[float], row: int = _ROW) -> Frame:
    """Return a frame with a row of this height for each label; `share` is where between the ticks' ends a value is."""
    names = list(labels)
    left = int(_CHARACTER * max(map(len, names), default=0)) + 16
    return Frame(left, len(names), row, lambda value: left + (_WIDTH - _RIGHT - left) * share(value), ticks)


def logarithmic(ticks: Sequence[float]) -> Callable[[float], float]:
    """Return the share of a logarithmic axis between the first and the last tick."""
    low, span = math.log(ticks[0]), math.log(ticks[-1] / ticks[0])
    return lambda value: (math.log(value) - low) / span


def axis(frame: Frame, title: str) -> list[str]:
    """Return the axis below the rows, with its ticks and a line for each through all rows."""
    left, right, y = frame.at(frame.ticks[0]), frame.at(frame.ticks[-1]), frame.bottom
    parts = [f'<path class="axis" d="M{left:.1f} {y}H{right:.1f}"/>']
    for tick in frame.ticks:
        parts.append(f'<path class="grid" d="M{frame.at(tick):.1f} {TOP}V{y + 4}"/>')
        parts.append(text_at(frame.at(tick), y + 17, f"{tick:,g}", "middle", "tick"))
    parts.append(text_at((left + right) / 2, y + 34, title, "middle", "tick"))
    return parts


def legend(frame: Frame, entries: Sequence[tuple[str, str]]) -> list[str]:
    """Return marks, and what each says, below the axis."""
    parts, x, y = [], 8.0, frame.bottom + 44
    for mark, said in entries:
        parts.append(f'<g transform="translate({x:.1f} {y})">{mark}</g>')
        parts.append(text_at(x + 24, y + 11, said, "start", "tick"))
        x += 24 + _CHARACTER * len(said) + 20
    return parts


def svg(frame: Frame, parts: Sequence[str], title: str, described: str, key: str) -> str:
    """Return the picture; `described` is told to who cannot see it, `key` is the picture's alone on its page."""
    height = frame.bottom + _AXIS
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-labelledby="{key}-title {key}-told">'
        f'<title id="{key}-title">{escape(title)}</title><desc id="{key}-told">{escape(described)}</desc>'
        f"{''.join(parts)}</svg>"
    )


def text_at(x: float, y: float, text: str, anchor: str = "start", kind: str = "label") -> str:
    """Return a line of text whose start, middle or end is there."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def linear_ticks(largest: float) -> list[float]:
    """Return round numbers from 0 to the first one that is not below the largest value."""
    if largest <= 0:
        return [0.0, 1.0]
    rough = largest / (_N_TICKS - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    return [round(n * step, 12) for n in range(math.ceil(largest / step * 0.999) + 1)]


def log_ticks(lowest: float, highest: float) -> list[float]:
    """Return 1, 2 and 5 of each power of ten, or if those are too many 1 alone.

    They reach from the last one that is not above the lowest value to the first one that is not below the highest.
    """
    fine = _log_ticks(lowest, highest, (1, 2, 5))
    return fine if len(fine) <= _N_LOG_TICKS else _log_ticks(lowest, highest, (1,))


def _log_ticks(lowest: float, highest: float, factors: Sequence[int]) -> list[float]:
    first, last = math.floor(math.log10(lowest)), math.ceil(math.log10(highest))
    every = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
    below = max(tick for tick in every if tick <= lowest)
    above = min(tick for tick in every if tick >= highest)
    return [tick for tick in every if below <= tick <= above]
