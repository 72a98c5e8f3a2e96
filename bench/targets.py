"""The figures that are promised, and whether a run keeps them. Nothing is rounded in our favour."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table

from flannel_udp.bench.contenders import HOSTS, PODS, Where
from flannel_udp.bench.metrics import OURS
from flannel_udp.bench.samples import Sample, figure, quartiles_of_rounds

LOOKUP, FAR = "lookup", "far and near"
"""Stand for an underlay where bench/lookup.py and bench/far_and_near.py have the figure."""
_MEASURE_COLUMNS, _VERDICT_COLUMNS = 26, 8
"""Leave the other columns what they need of 80; `not measured` breaks between its words."""


@dataclass(frozen=True, slots=True)
class Target:
    """A bound for `metric` of ours divided by the baseline's, or for ours itself where the baseline is empty.

    `measure` is what has to be taken for it. `and_hosts`: the same from host to host is shown beside it. `contender`
    is which of ours it is about.
    """

    title: str
    underlay: str
    between: str
    measure: str
    metric: str
    baseline: str
    bound: float
    aim: float
    higher_is_better: bool = True
    and_hosts: bool = False
    contender: str = OURS

    @property
    def place(self) -> Where:
        """Where it is measured."""
        return Where(self.underlay, self.between)

    @property
    def beside(self) -> Where | None:
        """Where the figure beside it is measured."""
        return Where(self.underlay, HOSTS) if self.and_hosts else None

    def met(self, figure: float) -> bool:
        """Whether the figure keeps the bound."""
        return figure >= self.bound if self.higher_is_better else figure <= self.bound

    def aim_met(self, figure: float) -> bool:
        """Whether the figure is as good as was hoped for."""
        return figure >= self.aim if self.higher_is_better else figure <= self.aim


def _backend(
    title: str, measure: str, metric: str, contender: str, baseline: str, *, bound: float, aim: float
) -> Target:
    return Target(title, "wire", PODS, measure, metric, baseline, bound, aim, contender=contender)


def _pods(title: str, underlay: str, measure: str, metric: str, *, bound: float, aim: float) -> Target:
    return Target(title, underlay, PODS, measure, metric, "vxlan", bound, aim, and_hosts=True)


TARGETS = (
    _pods("TCP, 1 stream", "whole", "tcp1", "tcp1_gbit_s", bound=0.75, aim=1.0),
    _pods("TCP, 4 streams", "whole", "tcp4", "tcp4_gbit_s", bound=0.65, aim=0.9),
    _pods("TCP, 1 stream", "wire", "tcp1", "tcp1_gbit_s", bound=0.85, aim=1.0),
    _pods("TCP, 4 streams", "wire", "tcp4", "tcp4_gbit_s", bound=0.75, aim=1.0),
    _pods("UDP 64 B delivered at saturation", "wire", "udp64", "udp64_kpps", bound=1.8, aim=2.5),
    Target(
        "UDP 64 B both ways, weaker direction to stronger",
        *("wire", PODS, "udp64-both", "udp64_weaker_share", "", 0.5, 0.8),
    ),
    Target("TCP, 1 stream", "slow-1g", PODS, "tcp1", "tcp1_gbit_s", "bare", 0.95, 1.0),
    Target(
        "ping p99 beside a TCP stream",
        *("slow-1g", PODS, "rtt-loaded", "rtt_loaded_p99_us", "vxlan", 1.5, 1.0),
        higher_is_better=False,
    ),
    Target("a near peer's TCP beside one behind 10 Mbit/s, to alone", FAR, FAR, FAR, "beside far", FAR, 0.9, 1.0),
    Target("TCP, 1 stream", "plain", HOSTS, "tcp1", "tcp1_gbit_s", "vxlan", 0.85, 1.1),
    Target("TCP, 1 stream", "whole", HOSTS, "tcp1", "tcp1_gbit_s", "naive", 13, 17),
    Target(
        "UDP 64 B, highest rate without loss",
        *("wire", HOSTS, "udp64-loss-free", "udp64_loss_free_kpps", "vxlan", 1.0, 1.5),
    ),
    Target(
        "CPU of the daemons per GB (TCP, 1 stream)",
        *("whole", HOSTS, "tcp1", "tcp1_daemons_cpu_s_per_gb", "naive"),
        bound=1 / 15,
        aim=1 / 25,
        higher_is_better=False,
    ),
    Target("ping p50, idle", "wire", HOSTS, "rtt", "rtt_p50_us", "naive", 1.2, 0.8, higher_is_better=False),
    Target(
        "ping p99 beside a TCP stream",
        *("wire", HOSTS, "rtt-loaded", "rtt_loaded_p99_us", "naive"),
        bound=0.5,
        aim=0.1,
        higher_is_better=False,
    ),
    Target(
        "time of a lookup, 100,000 subnets to 10",
        *(LOOKUP, LOOKUP, LOOKUP, "ratio", LOOKUP, 2, 1.3),
        higher_is_better=False,
    ),
    Target(
        "time of a lookup of IPv6 to IPv4, 100,000 subnets",
        *(LOOKUP, LOOKUP, LOOKUP, "ratio_of_ipv6", LOOKUP, 2, 1.3),
        higher_is_better=False,
    ),
    Target(
        "memory per route, bytes", LOOKUP, LOOKUP, LOOKUP, "bytes_per_route", LOOKUP, 200, 64, higher_is_better=False
    ),
    Target(
        "memory per route of IPv6, bytes",
        *(LOOKUP, LOOKUP, LOOKUP, "bytes_per_route_of_ipv6", LOOKUP, 200, 100),
        higher_is_better=False,
    ),
)
"""Of the backend udp."""

_TCP1, _UDP64 = ("TCP, 1 stream", "tcp1", "tcp1_gbit_s"), ("UDP 64 B delivered at saturation", "udp64", "udp64_kpps")
BACKEND_TARGETS = (
    _backend(*_TCP1, "ours-vxlan", OURS, bound=0.9, aim=1.0),
    _backend(*_TCP1, "ours-to-vxlan", "vxlan", bound=0.8, aim=1.0),
    _backend(*_TCP1, "vxlan-to-ours", "vxlan", bound=0.6, aim=0.9),
    _backend(*_UDP64, "ours-vxlan", "vxlan", bound=1.6, aim=1.9),
    _backend(*_TCP1, "ours-ipip", "naive-ipip", bound=1.5, aim=4.0),
)
"""Of the other backends in userspace."""

IPV6_TARGETS = (
    _backend(*_TCP1, "ours-v6", OURS, bound=0.9, aim=1.0),
    _backend(*_UDP64, "ours-v6", OURS, bound=0.9, aim=1.0),
    _backend(*_TCP1, "ours-v6", "vxlan-v6", bound=0.8, aim=1.0),
    _backend(*_UDP64, "ours-v6", "vxlan-v6", bound=1.6, aim=1.9),
)
"""Of IPv6 in IPv6 by udp, compared with IPv4 in IPv4, and with the kernel's VXLAN carrying the same."""

GROUPS: Mapping[str, tuple[Target, ...]] = {
    "all": TARGETS + BACKEND_TARGETS + IPV6_TARGETS,
    "udp": TARGETS,
    "backends": BACKEND_TARGETS,
    "ipv6": IPV6_TARGETS,
}
"""What can be asked for by name."""


def places(of: Sequence[Target]) -> list[Where]:
    """Return where bench.forward measures something for the targets."""
    every = (place for target in of for place in (target.place, target.beside))
    return list(dict.fromkeys(place for place in every if place and place.underlay not in (LOOKUP, FAR)))


def elsewhere(of: Sequence[Target]) -> list[str]:
    """Return which of `LOOKUP` and `FAR` the targets need."""
    return list(dict.fromkeys(target.underlay for target in of if target.underlay in (LOOKUP, FAR)))


def needed(of: Sequence[Target], place: Where) -> dict[str, list[str]]:
    """Return the measures that the targets need there, and the contenders of each, ours last."""
    baselines: dict[str, dict[str, None]] = {}
    ours: dict[str, dict[str, None]] = {}
    for target in of:
        if place in (target.place, target.beside):
            baselines.setdefault(target.measure, {}).update(dict.fromkeys([target.baseline] if target.baseline else []))
            ours.setdefault(target.measure, {})[target.contender] = None
    return {measure: list(baselines[measure] | ours[measure]) for measure in ours}


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target and what was measured; ``None`` where every sample was rejected.

    `quartiles` are the first and the third of what each round found; `beside` is the figure from host to host.
    """

    target: Target
    figure: float | None
    quartiles: tuple[float, float] | None = None
    beside: float | None = None

    @property
    def words(self) -> str:
        """How it ended."""
        if self.figure is None:
            return "not measured"
        if not self.target.met(self.figure):
            return "NOT met"
        return "met, and the aim" if self.target.aim_met(self.figure) else "met"


def judge(
    of: Sequence[Target],
    samples: Mapping[Where, Sequence[Sample]],
    found_elsewhere: Mapping[str, Mapping[str, float]],
) -> list[Verdict]:
    """Return a verdict for each target; `found_elsewhere` are the figures of `LOOKUP` and `FAR`, by metric."""

    def verdict(target: Target) -> Verdict:
        if target.underlay in (LOOKUP, FAR):
            return Verdict(target, found_elsewhere.get(target.underlay, {}).get(target.metric))
        taken, compared = samples.get(target.place, ()), (target.metric, target.baseline, target.contender)
        return Verdict(
            target,
            figure(taken, *compared),
            quartiles_of_rounds(taken, *compared),
            target.beside and figure(samples.get(target.beside, ()), *compared),
        )

    return [verdict(target) for target in of]


def records(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Return the verdicts, ready for JSON."""
    return [
        {
            **dataclasses.asdict(verdict.target),
            "figure": verdict.figure,
            "quartiles": verdict.quartiles,
            "host_to_host": verdict.beside,
            "met": verdict.figure is not None and verdict.target.met(verdict.figure),
        }
        for verdict in verdicts
    ]


def table(verdicts: Sequence[Verdict], title: str) -> Table:
    """Return the table of promises: what was measured has three digits, and the verdict knows all of them.

    `hosts` is the figure from host to host beside one between pods.
    """
    result = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    result.add_column("measure", width=_MEASURE_COLUMNS)
    for heading in ("target", "aim", "measured", "quartiles", "hosts"):
        result.add_column(heading, justify="right")
    result.add_column("verdict", width=_VERDICT_COLUMNS)
    for verdict in verdicts:
        target = verdict.target
        sign = "≥" if target.higher_is_better else "≤"
        result.add_row(
            _described(target),
            *(f"{sign}\N{NO-BREAK SPACE}{bound:.3g}" for bound in (target.bound, target.aim)),
            "-" if verdict.figure is None else f"{verdict.figure:.3g}",
            "-" if verdict.quartiles is None else "{:.3g} to {:.3g}".format(*verdict.quartiles),
            "-" if verdict.beside is None else f"{verdict.beside:.3g}",
            verdict.words,
        )
    return result


def _described(target: Target) -> str:
    """Return what the target is about: where, what, and ours to whose."""
    if target.underlay in (LOOKUP, FAR):
        return target.title
    compared = f", {target.contender} to {target.baseline}" if target.baseline else ""
    return f"{target.underlay}, {target.between}: {target.title}{compared}"
