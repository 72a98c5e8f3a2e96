"""The course of a run: round after round, and what others disturbed once more.

A round takes every measure on every contender, one contender straight after the other, so that a machine that changes
its speed changes it for all.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TypeVar

from flannel_udp.bench.contenders import Opener, Where, open_contender
from flannel_udp.bench.cpu import ForeignWatch
from flannel_udp.bench.generators import Load, build_blast
from flannel_udp.bench.measure import Measure, default_congestion_control, measure_of
from flannel_udp.bench.names import needs_blast
from flannel_udp.bench.quiet import Quiet
from flannel_udp.bench.samples import Sample
from flannel_udp.bench.time_left import TimeLeft
from flannel_udp.bench.ways import Way

logger = logging.getLogger("bench")

CUBIC = "cubic"
"""Named, because the default of a machine may be BBR, which ignores the loss of a bad tunnel."""
_TRIES = 2
"""A sample that others disturbed is taken once more, not for ever: the time of a run stays bounded."""

Plan = Mapping[str, Sequence[str]]
"""Measure → the contenders that it is taken on."""
AnyWay = TypeVar("AnyWay", bound=Way)


@dataclass(slots=True)
class Taken:
    """What was measured so far in one place; `mtus` are the contenders' overlay MTUs in bytes."""

    samples: list[Sample] = field(default_factory=list)
    mtus: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how often; `max_foreign` is the load of others that is let pass, in percent of one core."""

    rounds: int
    seconds: int
    congestion_control: str
    max_foreign: float

    @property
    def load(self) -> Load:
        """What the measures are given."""
        return Load(self.seconds, "" if self.congestion_control == "default" else self.congestion_control)

    @property
    def spoken_congestion_control(self) -> str:
        """The algorithm that runs."""
        return self.load.congestion_control or f"{default_congestion_control()} (the machine's default)"


@dataclass(frozen=True, slots=True)
class Run:
    """Takes samples in one place, into `taken` as they come, so that they are there whatever ends it."""

    schedule: Schedule
    taken: Taken
    quiet: Quiet

    def in_labs(self, place: Where, plan: Plan, openers: Mapping[str, Opener]) -> None:
        """Take all of them in labs, which are gone afterwards, also after Ctrl-C."""
        if any(map(needs_blast, plan)):
            build_blast()  # before a lab is built, and not within the first sample
        with ExitStack() as stack:
            pairs = []
            for name in openers:
                if any(name in contenders for contenders in plan.values()):
                    logger.info("%s: setting up %s", place.title, name)
                    pairs.append(stack.enter_context(open_contender(name, openers[name], place)))
            self.on_ways(pairs, plan, {name: measure_of(name) for name in plan})

    def on_ways(self, ways: Sequence[AnyWay], plan: Plan, measures: Mapping[str, Measure[AnyWay]]) -> None:
        """Take all of them on ways that are open."""
        self.taken.mtus.update({way.name: way.mtu for way in ways})
        self.quiet.wait()
        seconds, rounds = self.schedule.seconds, self.schedule.rounds
        round_s = sum(measures[name].nominal_s(seconds) * len(contenders) for name, contenders in plan.items())
        left = TimeLeft(rounds * round_s)
        logger.info("measuring %s on %s: %s", ", ".join(plan), ", ".join(way.name for way in ways), left)
        for number in range(rounds):
            for name, contenders in plan.items():
                for way in _rotated([way for way in ways if way.name in contenders], number):
                    for sample in self._samples(number + 1, name, measures[name], way):
                        self.taken.samples.append(sample)
                        self._tell(sample, left)
                    left.passed(measures[name].nominal_s(seconds))

    def _samples(self, number: int, name: str, measure: Measure[AnyWay], way: AnyWay) -> Iterator[Sample]:
        """Yield one sample; if others disturbed it, it is kept as rejected and taken once more."""
        for attempt in range(_TRIES):
            if attempt:
                self.quiet.wait()
            watch = ForeignWatch.start(self.quiet.ours)
            found = measure.take(way, self.schedule.load)
            foreign = watch.share()
            accepted = foreign * 100 <= self.schedule.max_foreign
            yield Sample(number, way.name, name, foreign, accepted, found.values, found.times_us)
            if accepted:
                break

    def _tell(self, sample: Sample, left: TimeLeft) -> None:
        shown = ", ".join(f"{metric} {value:.4g}" for metric, value in sample.values.items())
        verdict = "" if sample.accepted else f" - rejected: others used {sample.foreign:.0%} of a core"
        rounds = self.schedule.rounds
        logger.info("round %d/%d, %s left, %s: %s%s", sample.round, rounds, left, sample.contender, shown, verdict)


def _rotated(ways: Sequence[AnyWay], by: int) -> list[AnyWay]:
    """Let another contender begin in every round, so that none always follows the same one."""
    first = by % len(ways)
    return [*ways[first:], *ways[:first]]
