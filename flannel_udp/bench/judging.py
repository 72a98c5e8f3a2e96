"""A single run: every contender's median and spread, and whether ours differs from it by more than the noise. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flannel_udp.bench.intervals import MIN_ROUNDS, Interval, draw, interval, is_positive, log_ratio, minus
from flannel_udp.bench.metrics import OURS, Metric
from flannel_udp.bench.results import Place
from flannel_udp.bench.samples import Series, contenders, quartiles, series, taken

BETTER, WORSE, SAME = "better", "worse", "no difference"
TOO_FEW, NO_RATIO = "too few samples", "no ratio"
"""Verdicts on what cannot be compared: fewer accepted samples than `MIN_ROUNDS`, or a figure that is 0."""


@dataclass(frozen=True, slots=True)
class Spread:
    """What a contender's accepted samples of one metric say."""

    n: int
    median: float | None
    quartiles: tuple[float, float] | None

    @property
    def half(self) -> float | None:
        """Half the distance between the quartiles as a share of the median, ``None`` where there is none."""
        return (self.quartiles[1] - self.quartiles[0]) / 2 / self.median if self.quartiles and self.median else None


@dataclass(frozen=True, slots=True)
class Row:
    """One contender's figures of one metric; `ratio` is ours divided by it, `verdict` what that says of ours."""

    place: str
    metric: Metric
    contender: str
    spread: Spread
    ratio: Interval | None
    verdict: str


def spread_of(values: Series) -> Spread:
    """Return what a series says; it may be empty."""
    found = list(values.values())
    return Spread(len(found), statistics.median(found) if found else None, quartiles(found))


def why_not(*compared: Series) -> str:
    """Return why there is no interval for the ratio of two series; empty if there can be one."""
    if min(map(len, compared)) < MIN_ROUNDS:
        return TOO_FEW
    return "" if all(map(is_positive, compared)) else NO_RATIO


def verdict_on(metric: Metric, ratio: Interval | None) -> str:
    """Return what a ratio to something says of what stands above the line."""
    if ratio is None:
        return TOO_FEW
    if not ratio.beyond_noise:
        return SAME
    return BETTER if (ratio.ratio > 1) == metric.higher_is_better else WORSE


def judge(places: Sequence[Place]) -> list[Row]:
    """Return a row for each place, metric and contender that was measured, in this order."""
    lines = [line for place in places for line in _lines(place)]
    n_rows = sum(not line.why for line in lines)
    return [line.row(n_rows) for line in lines]


@dataclass(frozen=True, slots=True)
class _Line:
    """What a row is made from; `why` says why there is no ratio, which a row of ours itself needs no reason for."""

    place: str
    metric: Metric
    contender: str
    ours: Series
    theirs: Series

    @property
    def why(self) -> str:
        return "-" if self.contender == OURS else why_not(self.ours, self.theirs)

    def row(self, n_rows: int) -> Row:
        """Return the row, one of `n_rows` that have an interval."""
        spread = spread_of(self.theirs)
        if self.why:
            return Row(self.place, self.metric, self.contender, spread, None, self.why)
        draws = draw({OURS: self.ours, self.contender: self.theirs}, f"{self.place} {self.metric.name}")
        ratio = interval(
            log_ratio(self.ours, self.theirs),
            minus(draws[OURS], draws[self.contender]),
            len(self.ours) + len(self.theirs),
            n_rows,
        )
        return Row(self.place, self.metric, self.contender, spread, ratio, verdict_on(self.metric, ratio))


def _lines(place: Place) -> Iterator[_Line]:
    found = series(place.samples)
    for metric in taken(place.samples):
        by_contender = found.get(metric.name, {})
        for contender in contenders(sample for sample in place.samples if metric.name in sample.values):
            ours, theirs = by_contender.get(OURS, {}), by_contender.get(contender, {})
            yield _Line(place.name, metric, contender, ours, theirs)
