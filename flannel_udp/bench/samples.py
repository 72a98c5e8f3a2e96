"""From samples to medians, quartiles and ratios. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from flannel_udp.bench.latency import Histogram, merged
from flannel_udp.bench.metrics import BASELINES, OURS, Metric, metrics_of

Values = Mapping[str, float]
"""What a measure found, by metric name."""
Medians = Mapping[str, Mapping[str, float]]
"""Metric → contender → median of the accepted samples."""
Series = Mapping[int, float]
"""Round → what was found in it; rounds whose sample was rejected are missing."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a measure found; `times_us` are its round trips, where it has any."""

    values: Values
    times_us: Histogram = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one measure on one contender. `foreign` is what others used meanwhile, as a share of one processor."""

    round: int
    contender: str
    measure: str
    foreign: float
    accepted: bool
    values: Values
    times_us: Histogram = field(default_factory=dict)


def series(samples: Iterable[Sample]) -> dict[str, dict[str, dict[int, float]]]:
    """Return what the accepted samples found: metric → contender → round → value."""
    collected: dict[str, dict[str, dict[int, float]]] = {}
    for sample in samples:
        if sample.accepted:
            for name, value in sample.values.items():
                collected.setdefault(name, {}).setdefault(sample.contender, {})[sample.round] = value
    return collected


def medians(samples: Iterable[Sample]) -> Medians:
    """Return the median of every value over the accepted samples, where there is any."""
    return {
        name: {contender: statistics.median(values.values()) for contender, values in by_contender.items()}
        for name, by_contender in series(samples).items()
    }


def ratios(of: Medians) -> dict[str, dict[str, float | None]]:
    """Return ours divided by each baseline, metric by metric; ``None`` where one is missing or the baseline is 0."""
    return {
        name: {baseline: _ratio(by_contender, baseline) for baseline in BASELINES} for name, by_contender in of.items()
    }


def _ratio(by_contender: Mapping[str, float], baseline: str, contender: str = OURS) -> float | None:
    ours, theirs = by_contender.get(contender), by_contender.get(baseline)
    return ours / theirs if ours is not None and theirs else None


def figure(samples: Sequence[Sample], metric: str, baseline: str, contender: str = OURS) -> float | None:
    """Return a contender's divided by the baseline's, medians of the accepted samples; without one the contender's."""
    by_contender = medians(samples).get(metric, {})
    return _ratio(by_contender, baseline, contender) if baseline else by_contender.get(contender)


def quartiles(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the first and the third quartile; ``None`` for less than two values."""
    if len(values) < 2:
        return None
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def quartiles_of_rounds(
    samples: Sequence[Sample], metric: str, baseline: str, contender: str = OURS
) -> tuple[float, float] | None:
    """Return the quartiles of the `figure` that each single round gives; ``None`` for less than two of them."""
    rounds = {sample.round for sample in samples}
    found = [
        figure([each for each in samples if each.round == number], metric, baseline, contender) for number in rounds
    ]
    return quartiles([each for each in found if each is not None])


def taken(samples: Iterable[Sample]) -> list[Metric]:
    """Return the metrics that were taken, be it in rejected samples only, in the order in which they are shown."""
    return metrics_of(name for sample in samples for name in sample.values)


def round_trips(samples: Iterable[Sample]) -> dict[str, dict[str, dict[int, int]]]:
    """Return how many round trips took how long in the accepted samples: measure → contender → histogram."""
    found: dict[str, dict[str, list[Histogram]]] = {}
    for sample in samples:
        if sample.accepted and sample.times_us:
            found.setdefault(sample.measure, {}).setdefault(sample.contender, []).append(sample.times_us)
    return {
        measure: {contender: merged(each) for contender, each in by_contender.items()}
        for measure, by_contender in found.items()
    }


def contenders(samples: Iterable[Sample]) -> list[str]:
    """Return who was measured, in the order of their first sample."""
    return list(dict.fromkeys(sample.contender for sample in samples))


def n_rejected(samples: Iterable[Sample]) -> int:
    """Return how many samples were not used."""
    return sum(not sample.accepted for sample in samples)
