"""From samples to medians, ratios, a table and a JSON document. Pure but for the table, which is rich's."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from bench.chart import Chart
from bench.contenders import OURS
from bench.generators import Values

BASELINES = ("bare", "vxlan", "naive")
"""What ours is compared with."""

Medians = Mapping[str, Mapping[str, float]]
"""Metric → contender → median of the accepted samples."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one measure on one contender. `foreign` is what others used meanwhile, as a share of one processor."""

    round: int
    contender: str
    measure: str
    foreign: float
    accepted: bool
    values: Values


@dataclass(frozen=True, slots=True)
class Metric:
    """A row of the table: how a value is named there, and in which direction it is better."""

    name: str
    title: str
    higher_is_better: bool
    digits: int


METRICS = (
    Metric("tcp1_gbit_s", "TCP, 1 stream, Gbit/s", True, 2),
    Metric("tcp4_gbit_s", "TCP, 4 streams, Gbit/s", True, 2),
    Metric("tcp_both_gbit_s", "TCP, 1 stream each way, sum, Gbit/s", True, 2),
    Metric("udp64_kpps", "UDP 64 B delivered at saturation, kpps", True, 0),
    Metric("udp64_both_kpps", "UDP 64 B both ways delivered, sum, kpps", True, 0),
    Metric("udp64_weaker_share", "UDP 64 B both ways, weaker direction to stronger", True, 2),
    Metric("udp1400_kpps", "UDP 1,400 B delivered at saturation, kpps", True, 0),
    Metric("udp64_at_50k_delivered_kpps", "UDP 64 B delivered of 50 kpps", True, 1),
    Metric("udp64_at_50k_lost_percent", "UDP 64 B lost of 50 kpps, %", False, 2),
    Metric("udp64_at_100k_delivered_kpps", "UDP 64 B delivered of 100 kpps", True, 1),
    Metric("udp64_at_100k_lost_percent", "UDP 64 B lost of 100 kpps, %", False, 2),
    Metric("udp64_at_200k_delivered_kpps", "UDP 64 B delivered of 200 kpps", True, 1),
    Metric("udp64_at_200k_lost_percent", "UDP 64 B lost of 200 kpps, %", False, 2),
    Metric("udp64_loss_free_kpps", "UDP 64 B, highest rate without loss, kpps", True, 0),
    Metric("rtt_p50_us", "ping p50, µs", False, 0),
    Metric("rtt_p99_us", "ping p99, µs", False, 0),
    Metric("rtt_loaded_p50_us", "ping p50 beside a TCP stream, µs", False, 0),
    Metric("rtt_loaded_p99_us", "ping p99 beside a TCP stream, µs", False, 0),
    Metric("tcp1_daemons_cpu_s_per_gb", "CPU of the daemons, s per GB (TCP, 1 stream)", False, 2),
    Metric("tcp1_machine_cpu_s_per_gb", "CPU of the machine, s per GB (TCP, 1 stream)", False, 2),
)


def medians(samples: Sequence[Sample]) -> Medians:
    """Return the median of every value over the accepted samples, where there is any."""
    collected: dict[str, dict[str, list[float]]] = {}
    for sample in samples:
        if sample.accepted:
            for name, value in sample.values.items():
                collected.setdefault(name, {}).setdefault(sample.contender, []).append(value)
    return {
        name: {contender: statistics.median(values) for contender, values in by_contender.items()}
        for name, by_contender in collected.items()
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


def quartiles(
    samples: Sequence[Sample], metric: str, baseline: str, contender: str = OURS
) -> tuple[float, float] | None:
    """Return the first and the third quartile of what the single rounds found; ``None`` for less than two of them."""
    rounds = {sample.round for sample in samples}
    found = [
        figure([each for each in samples if each.round == number], metric, baseline, contender) for number in rounds
    ]
    known = [each for each in found if each is not None]
    if len(known) < 2:
        return None
    first, _, third = statistics.quantiles(known, n=4, method="inclusive")
    return first, third


def n_rejected(samples: Sequence[Sample]) -> int:
    """Return how many samples were not used."""
    return sum(not sample.accepted for sample in samples)


def results(mtus: Mapping[str, int], samples: Sequence[Sample]) -> dict[str, Any]:
    """Return what a run on one underlay found, ready for JSON. `mtus` are the contenders' overlay MTUs in bytes."""
    of = medians(samples)
    return {
        "mtus": dict(mtus),
        "samples": [dataclasses.asdict(sample) for sample in samples],
        "rejected": n_rejected(samples),
        "medians": of,
        "ratios": ratios(of),
    }


def document(
    machine: Mapping[str, Any], options: Mapping[str, Any], mtus: Mapping[str, int], samples: Sequence[Sample]
) -> dict[str, Any]:
    """Return everything about a run, ready for JSON."""
    return {"machine": dict(machine), "options": dict(options), **results(mtus, samples)}


def _shown(samples: Sequence[Sample]) -> list[Metric]:
    """Return the metrics that were taken, be it in rejected samples only."""
    taken = {name for sample in samples for name in sample.values}
    return [metric for metric in METRICS if metric.name in taken]


def chart(samples: Sequence[Sample], title: str) -> Chart:
    """Return bars that say how many times better ours is than each baseline: above 1 is better, times and CPU too."""
    against = ratios(medians(samples))
    rows: dict[str, dict[str, float]] = {}
    for metric in _shown(samples):
        for baseline, ratio in against.get(metric.name, {}).items():
            if ratio:
                better = ratio if metric.higher_is_better else 1 / ratio
                rows.setdefault(metric.title, {})[f"to {baseline}"] = better
    return Chart(f"{OURS}, times better: {title}", rows, logarithmic=True)


def table(samples: Sequence[Sample], contenders: Sequence[str], title: str) -> Table:
    """Return the medians, a row a metric, with the ratios of ours to the baselines.

    A median of fewer samples than there were rounds says so: ``1.48 (2)`` is one of two.
    """
    of = medians(samples)
    against = ratios(of)
    n_rounds = max((sample.round for sample in samples), default=0)
    result = Table(title=title, title_justify="left")
    result.add_column("median")
    result.add_column("better")
    for heading in (*contenders, *(f"{OURS} / {baseline}" for baseline in BASELINES)):
        result.add_column(heading, justify="right")
    for metric in _shown(samples):
        by_contender = of.get(metric.name, {})
        compared = against.get(metric.name, {})
        result.add_row(
            metric.title,
            "more" if metric.higher_is_better else "less",
            *(
                _cell(by_contender.get(contender), metric.digits) + _shortage(samples, contender, metric.name, n_rounds)
                for contender in contenders
            ),
            *(_cell(compared.get(baseline), 2) for baseline in BASELINES),
        )
    return result


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _shortage(samples: Sequence[Sample], contender: str, metric: str, n_rounds: int) -> str:
    n = sum(sample.accepted and sample.contender == contender and metric in sample.values for sample in samples)
    return f" ({n})" if 0 < n < n_rounds else ""
