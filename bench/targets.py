"""The figures that are promised, and whether a run keeps them. Nothing is rounded in our favour."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from bench.contenders import OURS

LOOKUP = "lookup"
"""Stands for an underlay and a baseline where bench/lookup.py has the figure."""


@dataclass(frozen=True, slots=True)
class Target:
    """A bound for `metric` of ours divided by the baseline's. `measure` is what has to be taken for it."""

    title: str
    underlay: str
    measure: str
    metric: str
    baseline: str
    bound: float
    aim: float
    higher_is_better: bool = True

    def met(self, figure: float) -> bool:
        """Whether the figure keeps the bound."""
        return figure >= self.bound if self.higher_is_better else figure <= self.bound

    def aim_met(self, figure: float) -> bool:
        """Whether the figure is as good as was hoped for."""
        return figure >= self.aim if self.higher_is_better else figure <= self.aim


TARGETS = (
    Target("TCP, 1 stream", "wire", "tcp1", "tcp1_gbit_s", "vxlan", 1.0, 1.3),
    Target("TCP, 4 streams", "wire", "tcp4", "tcp4_gbit_s", "vxlan", 1.0, 1.3),
    Target("UDP 64 B delivered at saturation", "wire", "udp64", "udp64_kpps", "vxlan", 1.9, 2.5),
    Target("TCP, 1 stream", "whole", "tcp1", "tcp1_gbit_s", "vxlan", 0.80, 1.0),
    Target("TCP, 4 streams", "whole", "tcp4", "tcp4_gbit_s", "vxlan", 0.35, 0.7),
    Target("TCP, 1 stream", "plain", "tcp1", "tcp1_gbit_s", "vxlan", 0.85, 1.1),
    Target("TCP, 1 stream", "whole", "tcp1", "tcp1_gbit_s", "naive", 13, 17),
    Target("UDP 64 B, highest rate without loss", "wire", "udp64-loss-free", "udp64_loss_free_kpps", "vxlan", 1.0, 1.5),
    Target(
        "CPU of the daemons per GB (TCP, 1 stream)",
        *("whole", "tcp1", "tcp1_daemons_cpu_s_per_gb", "naive"),
        bound=1 / 15,
        aim=1 / 25,
        higher_is_better=False,
    ),
    Target("ping p50, idle", "wire", "rtt", "rtt_p50_us", "naive", 1.2, 0.8, higher_is_better=False),
    Target(
        "ping p99 beside a TCP stream",
        *("wire", "rtt-loaded", "rtt_loaded_p99_us", "naive"),
        bound=0.5,
        aim=0.1,
        higher_is_better=False,
    ),
    Target("time of a lookup, 100,000 subnets to 10", LOOKUP, LOOKUP, "ratio", LOOKUP, 2, 1.3, higher_is_better=False),
    Target("memory per route, bytes", LOOKUP, LOOKUP, "bytes_per_route", LOOKUP, 200, 64, higher_is_better=False),
)


def needed(underlay: str) -> dict[str, list[str]]:
    """Return the measures that the targets need on an underlay, and the contenders of each, ours last."""
    measures: dict[str, list[str]] = {}
    for target in TARGETS:
        if target.underlay == underlay:
            contenders = measures.setdefault(target.measure, [])
            if target.baseline not in contenders:
                contenders.append(target.baseline)
    return {measure: [*contenders, OURS] for measure, contenders in measures.items()}


def underlays() -> list[str]:
    """Return the underlays on which something is promised."""
    return list(dict.fromkeys(target.underlay for target in TARGETS if target.underlay != LOOKUP))


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target and what was measured; ``None`` where every sample was rejected."""

    target: Target
    figure: float | None

    @property
    def words(self) -> str:
        """How it ended."""
        if self.figure is None:
            return "not measured"
        if not self.target.met(self.figure):
            return "NOT met"
        return "met, and the aim" if self.target.aim_met(self.figure) else "met"


def judge(ratios: Mapping[str, Mapping[str, Mapping[str, float | None]]], lookup: Mapping[str, float]) -> list[Verdict]:
    """Return a verdict for each target. `ratios` holds those of each underlay by metric and baseline."""

    def figure(target: Target) -> float | None:
        if target.underlay == LOOKUP:
            return lookup.get(target.metric)
        return ratios.get(target.underlay, {}).get(target.metric, {}).get(target.baseline)

    return [Verdict(target, figure(target)) for target in TARGETS]


def records(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Return the verdicts, ready for JSON."""
    return [
        {
            **dataclasses.asdict(verdict.target),
            "figure": verdict.figure,
            "met": verdict.figure is not None and verdict.target.met(verdict.figure),
        }
        for verdict in verdicts
    ]


def table(verdicts: Sequence[Verdict], title: str) -> Table:
    """Return the table of promises: what was measured has three digits, and the verdict knows all of them."""
    result = Table(title=title, title_justify="left")
    for heading in ("underlay", "measure", "compared with"):
        result.add_column(heading)
    for heading in ("target", "aim", "measured"):
        result.add_column(heading, justify="right")
    result.add_column("verdict")
    for verdict in verdicts:
        target = verdict.target
        sign = "≥" if target.higher_is_better else "≤"
        where, against = ("-", "-") if target.underlay == LOOKUP else (target.underlay, target.baseline)
        result.add_row(
            *(where, target.title, against, f"{sign} {target.bound:.3g}", f"{sign} {target.aim:.3g}"),
            "-" if verdict.figure is None else f"{verdict.figure:.3g}",
            verdict.words,
        )
    return result
