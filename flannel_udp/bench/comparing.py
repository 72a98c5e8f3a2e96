"""Two runs, an old and a new one: what became better or worse, and what is only the machine or chance. Pure.

Runs are minutes or days apart, and a machine is not as fast today as it was yesterday. The contenders that are none of
ours tell: their medians' changes in the same metric, the middle one of them, is the machine's. Ours is called better
or worse only where its ratio new to old is surely not 1, and still is not when it is divided by the machine's.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flannel_udp.bench.intervals import Interval, draw, interval, log_ratio, minus
from flannel_udp.bench.judging import SAME, Spread, spread_of, verdict_on, why_not
from flannel_udp.bench.metrics import Metric, is_ours, metrics_of
from flannel_udp.bench.results import Place, Result
from flannel_udp.bench.samples import Series, series
from flannel_udp.errors import UsageError

MACHINE = "the machine"
"""The verdict on a change that is no build's: others changed as much, or it is one of the others."""
_MACHINE_FACTS = ("architecture", "cpu", "cores", "kernel", "other_host")
"""What makes another machine of it."""
_BESIDE_THE_POINT = ("json", "rounds", "wait", "offload")
"""Options that may differ: where the file went, the number of rounds, which the intervals know, how long a busy machine
was waited for, and what our agents did without, which is a build's as well as its code."""


@dataclass(frozen=True, slots=True)
class Row:
    """One contender's figures of one metric in both runs.

    `ratio` is new to old, `beside` that divided by the machine's.
    """

    place: str
    metric: Metric
    contender: str
    old: Spread
    new: Spread
    ratio: Interval | None
    beside: Interval | None
    verdict: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs beside each other. `remarks` are sentences on what differs beside the builds."""

    old: Result
    new: Result
    rows: tuple[Row, ...]
    remarks: tuple[str, ...]


def compare(old: Result, new: Result, *, any_machine: bool = False) -> Comparison:
    """Compare two runs. Raises `UsageError` where they say nothing about each other."""
    _check_options(old, new)
    remarks = _check_machines(old, new, any_machine=any_machine)
    if old.options.get("offload") != new.options.get("offload"):
        remarks.append(f"our agents ran with other offloads: {_change(old.options, new.options, 'offload')}")
    pairs = _pairs(old, new)
    if not pairs:
        raise UsageError(f"{old.path} and {new.path} have no contender and figure in common")
    n_rows = sum(not why_not(*each) for pair in pairs for each in pair.both.values())
    rows = tuple(row for pair in pairs for row in pair.rows(n_rows))
    return Comparison(old, new, rows, (*remarks, *_lacking(old, new)))


def _check_machines(old: Result, new: Result, *, any_machine: bool) -> list[str]:
    """Return remarks on programs that differ. Raises `UsageError` where it is another machine, unless that may be."""
    differing = {
        name for name in old.machine.keys() | new.machine.keys() if old.machine.get(name) != new.machine.get(name)
    }
    others = [_change(old.machine, new.machine, name) for name in _MACHINE_FACTS if name in differing]
    if others and not any_machine:
        raise UsageError(
            f"{old.path} and {new.path} are of two machines ({', '.join(others)}): that would compare the machines, "
            "not the builds; --anyway does it all the same"
        )
    programs = [_change(old.machine, new.machine, name) for name in ("python", "iperf3") if name in differing]
    remarks = [f"two machines, {', '.join(others)}: what is called better or worse may be theirs"] if others else []
    return [*remarks, *(f"other programs: {', '.join(programs)}" for _ in programs[:1])]


def _check_options(old: Result, new: Result) -> None:
    names = dict.fromkeys((*old.options, *new.options))
    differing = [
        name for name in names if name not in _BESIDE_THE_POINT and old.options.get(name) != new.options.get(name)
    ]
    if differing:
        changes = ", ".join(_change(old.options, new.options, name) for name in differing)
        raise UsageError(
            f"{old.path} and {new.path} were measured with other options ({changes}): run one of them again"
        )


def _change(old: Mapping[str, Any], new: Mapping[str, Any], name: str) -> str:
    return f"{name} {old.get(name)} → {new.get(name)}"


@dataclass(frozen=True, slots=True)
class _Pair:
    """One metric in one place: the series of all contenders in both runs."""

    place: str
    metric: Metric
    old: Mapping[str, Series]
    new: Mapping[str, Series]

    @property
    def both(self) -> dict[str, tuple[Series, Series]]:
        """The series, old and new, of those that both runs have."""
        return {name: (values, self.new[name]) for name, values in self.old.items() if name in self.new}

    def rows(self, n_rows: int) -> list[Row]:
        """Return a row for each contender, each one of `n_rows` that have an interval."""
        comparable = {name: pair for name, pair in self.both.items() if not why_not(*pair)}
        seed = f"{self.place} {self.metric.name}"
        old = draw({name: pair[0] for name, pair in comparable.items()}, f"{seed} old")
        new = draw({name: pair[1] for name, pair in comparable.items()}, f"{seed} new")
        found = {name: log_ratio(pair[1], pair[0]) for name, pair in comparable.items()}
        draws = {name: minus(new[name], old[name]) for name in comparable}
        others = [name for name in comparable if not is_ours(name)]
        machine = statistics.median(found[name] for name in others) if others else None
        machines = [_middle(each) for each in zip(*(draws[name] for name in others), strict=True)]
        rows = []
        for name, pair in self.both.items():
            ratio = beside = None
            verdict = why_not(*pair)
            if not verdict:
                n_values = sum(map(len, pair))
                ratio = interval(found[name], draws[name], n_values, n_rows)
                if machine is not None and is_ours(name):
                    beside = interval(found[name] - machine, minus(draws[name], machines), n_values, n_rows)
                verdict = self._verdict(name, ratio, beside)
            before, after = map(spread_of, pair)
            rows.append(Row(self.place, self.metric, name, before, after, ratio, beside, verdict))
        return rows

    def _verdict(self, contender: str, ratio: Interval | None, beside: Interval | None) -> str:
        verdict = verdict_on(self.metric, ratio)
        if ratio is None or verdict == SAME:
            return verdict
        if not is_ours(contender):
            return MACHINE
        return verdict if beside is None or verdict_on(self.metric, beside) == verdict else MACHINE


def _middle(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _pairs(old: Result, new: Result) -> list[_Pair]:
    places: dict[str, Place] = {place.name: place for place in new.places}
    pairs = []
    for place in old.places:
        if place.name in places:
            before, after = series(place.samples), series(places[place.name].samples)
            pairs += [
                _Pair(place.name, metric, before[metric.name], after[metric.name])
                for metric in metrics_of(before.keys() & after.keys())
                if before[metric.name].keys() & after[metric.name].keys()
            ]
    return pairs


def _lacking(old: Result, new: Result) -> list[str]:
    """Say who is in one of the runs only."""
    who = {
        result.path: {sample.contender for place in result.places for sample in place.samples} for result in (old, new)
    }
    common = set.intersection(*who.values())
    return [f"only in {path}: {', '.join(sorted(names - common))}" for path, names in who.items() if names - common]
