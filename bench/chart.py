"""Bar charts as SVG, written by hand, and the JSON file beside them: horizontal bars are all that the benches draw."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from flannel_udp.errors import FlannelError

_COLOURS = ("#3b6ea5", "#d08c2f", "#5b9a68", "#a45b8f", "#777777", "#b5503c")
_WIDTH, _LABELS, _FIGURES = 900, 330, 60
"""Of the whole chart, of the labels left of the bars, and of the figures right of them, in pixels."""
_PLOT = _WIDTH - _LABELS - _FIGURES
_BAR, _GAP, _TITLE, _LEGEND = 14, 10, 34, 24


@dataclass(frozen=True, slots=True)
class Chart:
    """Rows of bars: label → series → value. A logarithmic chart has its line at 1, bars go both ways from it."""

    title: str
    rows: Mapping[str, Mapping[str, float]]
    logarithmic: bool = False

    @property
    def series(self) -> list[str]:
        """The names of the series in the order of their appearance."""
        return list(dict.fromkeys(name for values in self.rows.values() for name in values))

    @property
    def height(self) -> int:
        """Pixels."""
        return _TITLE + _LEGEND + sum(_BAR * len(values) + _GAP for values in self.rows.values())


def svg(charts: Sequence[Chart]) -> str:
    """Return a picture of the charts, one below the other. It is black on white wherever it is shown."""
    parts, top = [], 0
    for chart in charts:
        parts += _draw(chart, top)
        top += chart.height
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{top}" viewBox="0 0 {_WIDTH} {top}" '
        'font-family="sans-serif" font-size="12">'
    )
    return "\n".join([head, f'<rect width="{_WIDTH}" height="{top}" fill="white"/>', *parts, "</svg>"]) + "\n"


def write(path: Path, document: Mapping[str, Any], charts: Sequence[Chart]) -> None:
    """Write the figures as JSON, and the charts next to them under the same name with .svg."""
    for file, text in (
        (path.with_suffix(".svg"), svg(charts)),
        (path, json.dumps(document, indent=2) + "\n"),
    ):
        try:
            file.write_text(text)
        except OSError as error:
            raise FlannelError(f"cannot write {file}: {error.strerror}") from None


def _draw(chart: Chart, top: int) -> list[str]:
    parts = [_text(10, top + 22, chart.title, "start", ' font-size="15" font-weight="bold"')]
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(chart.series)}
    for i, (name, colour) in enumerate(colours.items()):
        x, y = _LABELS + 140 * i, top + _TITLE + 2
        parts += [f'<rect x="{x}" y="{y}" width="12" height="12" fill="{colour}"/>', _text(x + 17, y + 10, name)]
    values = [value for row in chart.rows.values() for value in row.values()]
    origin, at = _scale(values, logarithmic=chart.logarithmic)
    y = top + _TITLE + _LEGEND
    for label, row in chart.rows.items():
        parts.append(_text(_LABELS - 8, y + _BAR * len(row) / 2 + 4, label, "end"))
        for name, value in row.items():
            left, right = sorted((origin, at(value)))
            parts.append(
                f'<rect x="{left:.1f}" y="{y}" width="{max(right - left, 1):.1f}" height="{_BAR - 2}" '
                f'fill="{colours[name]}"/>'
            )
            parts.append(_text(right + 4, y + 10, f"{value:.3g}"))
            y += _BAR
        y += _GAP
    line_top = top + _TITLE + _LEGEND - 4
    parts.append(f'<line x1="{origin:.1f}" y1="{line_top}" x2="{origin:.1f}" y2="{y - _GAP}" stroke="black"/>')
    return parts


def _scale(values: Sequence[float], *, logarithmic: bool) -> tuple[float, Callable[[float], float]]:
    """Return where bars begin, and the function that says where the bar of a value ends, in pixels."""
    if not logarithmic:
        largest = max(values, default=0) or 1
        return _LABELS, lambda value: _LABELS + _PLOT * value / largest
    logs = [math.log(value) for value in values] + [0.0]  # 0 is the line at 1
    low, span = min(logs), (max(logs) - min(logs)) or 1

    def at(value: float) -> float:
        return _LABELS + _PLOT * (math.log(value) - low) / span

    return at(1), at


def _text(x: float, y: float, text: str, anchor: str = "start", more: str = "") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}"{more}>{escape(text)}</text>'
