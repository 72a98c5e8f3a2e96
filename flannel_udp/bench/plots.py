"""Plots of medians with their samples, and of ratios, as inline SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flannel_udp.bench import judging
from flannel_udp.bench.drawing import TOP, axis, frame_of, legend, linear_ticks, log_ticks, logarithmic, svg, text_at
from flannel_udp.bench.judging import BETTER, WORSE
from flannel_udp.bench.metrics import Metric, is_ours
from flannel_udp.bench.samples import Series
from flannel_udp.bench.sheets import INTERVAL, figure


def spread_plot(metric: Metric, found: Mapping[str, Series], key: str) -> str:
    """Return a row for each contender: its median as a bar from 0, the quartiles as a line, each sample as a dot.

    `key` is the picture's alone on its page.
    """
    values = [value for series in found.values() for value in series.values()]
    ticks = linear_ticks(max(values, default=0.0))
    frame = frame_of(found, lambda share: share / ticks[-1], ticks)
    parts = axis(frame, metric.label)
    for row, (contender, series) in enumerate(found.items()):
        y, spread = frame.middle(row), judging.spread_of(series)
        whose = "ours" if is_ours(contender) else "theirs"
        parts.append(text_at(frame.left - 8, y + 4, contender, "end"))
        if spread.median is None:
            parts.append(text_at(frame.left + 6, y + 4, "every sample was rejected"))
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
        parts.append(text_at(last + 8, y + 4, figure(spread.median), "start", "figure"))
    marks = [
        ('<rect class="ours" width="18" height="12"/>', "median of ours"),
        ('<rect class="theirs" width="18" height="12"/>', "of another"),
        ('<path class="quartiles" d="M1 1v10m0 -5h16m0 -5v10"/>', "quartiles"),
        ('<circle class="sample" cx="9" cy="6" r="2.6"/>', "one sample"),
    ]
    described = ", ".join(
        f"{who} {figure(judging.spread_of(series).median or 0)}" for who, series in found.items() if series
    )
    return svg(frame, [*parts, *legend(frame, marks)], f"{metric.label}: medians", described, key)


def ratio_plot(rows: Sequence[judging.Row], key: str) -> str:
    """Return how many times better ours is than each other contender, with the intervals, on a logarithmic axis."""
    drawn = {f"{row.metric.title}, to {row.contender}": row for row in rows if row.ratio}
    better = {label: _times_better(row) for label, row in drawn.items()}
    ends = [end for _, low, high in better.values() for end in (low, high)]
    ticks = log_ticks(min([*ends, 0.5]), max([*ends, 2.0]))
    frame = frame_of(better, logarithmic(ticks), ticks)
    parts = axis(frame, "times better (logarithmic): right of 1 ours is better, also where less is")
    parts.append(f'<path class="one" d="M{frame.at(1):.1f} {TOP}V{frame.bottom}"/>')
    for number, (label, (times, low_end, high_end)) in enumerate(better.items()):
        y, x = frame.middle(number), frame.at(times)
        parts.append(text_at(frame.left - 8, y + 4, label, "end"))
        from_x, to_x = frame.at(low_end), frame.at(high_end)
        parts.append(f'<path class="interval" d="M{from_x:.1f} {y - 4:.1f}v8m0 -4H{to_x:.1f}m0 -4v8"/>')
        parts.append(f'<g transform="translate({x:.1f} {y:.1f})">{_mark(drawn[label].verdict)}</g>')
    marks = [
        (f'<g transform="translate(9 6)">{_mark(BETTER)}</g>', "ours is better"),
        (f'<g transform="translate(9 6)">{_mark(WORSE)}</g>', "ours is worse"),
        (f'<g transform="translate(9 6)">{_mark("")}</g>', "no difference"),
        ('<path class="interval" d="M1 2v8m0 -4h16m0 -4v8"/>', f"{INTERVAL} interval"),
    ]
    described = ", ".join(f"{label} {times:.2f}" for label, (times, _, _) in better.items())
    return svg(frame, [*parts, *legend(frame, marks)], "Ours beside the others: times better", described, key)


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
