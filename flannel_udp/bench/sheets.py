"""Rows as people read them: cells of text, a group a metric, the same for the terminal, Markdown and HTML. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flannel_udp.bench import comparing, judging
from flannel_udp.bench.comparing import MACHINE, Comparison
from flannel_udp.bench.intervals import LEVEL, MIN_ROUNDS, Interval
from flannel_udp.bench.judging import SAME, Spread
from flannel_udp.bench.metrics import Metric
from flannel_udp.bench.results import Place, Result
from flannel_udp.bench.samples import n_rejected

INTERVAL = f"{LEVEL:.0%}".replace("%", " %")
"""How the intervals' level is said."""


@dataclass(frozen=True, slots=True)
class Group:
    """The rows of one metric."""

    metric: Metric
    rows: tuple[tuple[str, ...], ...]

    @property
    def title(self) -> str:
        """What was measured, in what, and whether more or less of it is better."""
        return f"{self.metric.label} ({self.metric.better} is better)"


@dataclass(frozen=True, slots=True)
class Sheet:
    """The groups of one place; the first column is the contender, the one at `verdict_at` says how it went."""

    title: str
    headings: tuple[str, ...]
    groups: tuple[Group, ...]
    verdict_at: int


def run_sheets(rows: Sequence[judging.Row]) -> list[Sheet]:
    """Return a sheet for each place of a single run."""
    headings = ("contender", "median ±", "of", "ours/it", INTERVAL, "ours is", "sees")
    return [
        Sheet(place, headings, tuple(Group(metric, tuple(map(_run_cells, each))) for metric, each in of), 5)
        for place, of in _grouped(rows)
    ]


def _run_cells(row: judging.Row) -> tuple[str, ...]:
    return (row.contender, _median(row.spread), str(row.spread.n), *_ratio(row.ratio), row.verdict, _sees(row))


def compared_sheets(rows: Sequence[comparing.Row]) -> list[Sheet]:
    """Return a sheet for each place of two runs."""
    headings = ("contender", "old ±", "new ±", "new/old", INTERVAL, "new is", "sees")
    return [
        Sheet(place, headings, tuple(Group(metric, tuple(map(_compared_cells, each))) for metric, each in of), 5)
        for place, of in _grouped(rows)
    ]


def _compared_cells(row: comparing.Row) -> tuple[str, ...]:
    return (row.contender, _median(row.old), _median(row.new), *_ratio(row.ratio), row.verdict, _sees(row))


def _grouped(rows: Sequence[Any]) -> list[tuple[str, list[tuple[Metric, list[Any]]]]]:
    places: dict[str, dict[Metric, list[Any]]] = {}
    for row in rows:
        places.setdefault(row.place, {}).setdefault(row.metric, []).append(row)
    return [(place, list(of.items())) for place, of in places.items()]


def figure(value: float) -> str:
    """Return a figure with three digits, or all of those before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def share(value: float) -> str:
    """Return a share in percent: whole ones, below 10 with one digit behind the point."""
    return f"{value:.0%}".replace("%", " %") if value >= 0.0995 else f"{value:.1%}".replace("%", " %")


def _median(spread: Spread) -> str:
    if spread.median is None:
        return "-"
    half = spread.half
    return figure(spread.median) if half is None else f"{figure(spread.median)} ±{share(half)}"


def _ratio(ratio: Interval | None) -> tuple[str, str]:
    return ("-", "-") if ratio is None else (_times(ratio.ratio), f"{_times(ratio.low)} to {_times(ratio.high)}")


def _times(ratio: float) -> str:
    return f"{ratio:.2f}" if 0.1 <= ratio < 10 else figure(ratio)


def _sees(row: judging.Row | comparing.Row) -> str:
    return share(row.ratio.visible) if row.ratio and row.verdict == SAME else ""


def legend() -> list[str]:
    """Return what the columns mean."""
    return [
        "±: half of what lies between the quartiles, as a share of the median.",
        f"{INTERVAL}: where the ratio lies; in 95 of 100 runs all of these intervals hold at once.",
        f"{SAME}: the interval has 1 in it; a change as large as `sees` would have been found in four of five runs.",
        f"{judging.TOO_FEW}: nothing is claimed from less than {MIN_ROUNDS} accepted samples.",
    ]


def compared_legend() -> list[str]:
    """Return what the columns mean where two runs are compared."""
    return [
        *legend(),
        f"{MACHINE}: a change that is no build's, since contenders of others changed as much, or is theirs.",
    ]


def facts(result: Result) -> list[tuple[str, str]]:
    """Return where, when and how a run was measured, line by line."""
    machine, options = result.machine, result.options
    samples = [sample for place in result.places for sample in place.samples]
    foreign = statistics.median(sample.foreign for sample in samples)
    return [
        ("measured", _said(machine, ("date", ""), ("commit", "commit"), ("flannel_udp", "flannel-udp"))),
        (
            "machine",
            f"{machine.get('cpu', '?')}, {machine.get('cores', '?')} cores, {machine.get('architecture', '?')}",
        ),
        *([("other host", str(machine["other_host"]))] if "other_host" in machine else []),
        ("software", _said(machine, ("kernel", "Linux"), ("python", "Python"), ("iperf3", ""))),
        ("command", command(options)),
        ("others", f"used {share(foreign)} of a core meanwhile (median)"),
        (
            "samples",
            f"{len(samples)}, rounds {result.n_rounds}, {n_rejected(samples)} rejected as others used the processor",
        ),
    ]


def compared_facts(comparison: Comparison) -> list[tuple[str, str]]:
    """Return what was compared, line by line: the machine and the command once, since they are the same."""
    old, new = (dict(facts(result)) for result in (comparison.old, comparison.new))
    of_new = [(name, said) for name, said in new.items() if name not in ("measured", "samples", "others")]
    sides = [
        (side, f"{result.path}: {of['measured']}; samples {of['samples']}; others {of['others']}")
        for side, result, of in (("old", comparison.old, old), ("new", comparison.new, new))
    ]
    return [*sides, *of_new, *(("beware", remark) for remark in comparison.remarks)]


def _said(of: Mapping[str, Any], *names: tuple[str, str]) -> str:
    return ", ".join(f"{title} {of[name]}".strip() for name, title in names if of.get(name))


def command(options: Mapping[str, Any]) -> str:
    """Return the command line that measures with these options once more."""
    chosen_by_targets = ("rounds", "seconds", "targets", "max_foreign")
    words = [str(options.get("program", "python -m bench.forward"))]
    for name, value in options.items():
        implied = options.get("targets") and name not in chosen_by_targets
        if implied or name in ("json", "program") or value in (False, None, "", []):
            continue
        words.append(f"--{name.replace('_', '-')}")
        if isinstance(value, list):
            words.append(",".join(map(str, value)))
        elif name == "congestion_control" and "default" in str(value):
            words.append("default")  # what that was on this machine stands behind it
        elif value is not True:
            words.append(str(value).removesuffix(".0"))
    return " ".join(words)


def mtu_note(place: Place) -> str:
    """Return the overlay MTUs of a place's contenders."""
    return "overlay MTU: " + ", ".join(f"{name} {mtu}" for name, mtu in place.mtus.items())


def place_notes(result: Result) -> dict[str, str]:
    """Return what is to be said of each place, by its name."""
    return {place.name: mtu_note(place) for place in result.places if place.mtus}


def run_records(rows: Iterable[judging.Row]) -> list[dict[str, Any]]:
    """Return the rows of a single run, for programs."""
    return [
        {
            **_of_whom(row),
            **_spread_record("", row.spread),
            **_ratio_record("ours_to_it", row.ratio),
            "ours_is": row.verdict,
        }
        for row in rows
    ]


def compared_records(rows: Iterable[comparing.Row]) -> list[dict[str, Any]]:
    """Return the rows of two runs, for programs."""
    return [
        {
            **_of_whom(row),
            **_spread_record("old_", row.old),
            **_spread_record("new_", row.new),
            **_ratio_record("new_to_old", row.ratio),
            **_ratio_record("beside_the_machine", row.beside),
            "new_is": row.verdict,
        }
        for row in rows
    ]


def compared_document(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison, for programs."""
    sides = {"old": comparison.old, "new": comparison.new}
    return {
        **{name: {"file": str(result.path), "machine": dict(result.machine)} for name, result in sides.items()},
        "options": dict(comparison.new.options),
        "remarks": list(comparison.remarks),
        "rows": compared_records(comparison.rows),
    }


def _of_whom(row: judging.Row | comparing.Row) -> dict[str, Any]:
    metric = row.metric
    return {
        "place": row.place,
        "metric": metric.name,
        "unit": metric.unit,
        "better": metric.better,
        "contender": row.contender,
    }


def _spread_record(prefix: str, spread: Spread) -> dict[str, Any]:
    first, third = spread.quartiles or (None, None)
    return {f"{prefix}n": spread.n, f"{prefix}median": spread.median, f"{prefix}q1": first, f"{prefix}q3": third}


def _ratio_record(name: str, ratio: Interval | None) -> dict[str, Any]:
    found = (ratio.ratio, ratio.low, ratio.high, ratio.visible) if ratio else (None, None, None, None)
    return dict(zip((name, f"{name}_low", f"{name}_high", f"{name}_visible"), found, strict=True))
