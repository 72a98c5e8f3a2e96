"""How fast packets are forwarded: bare veth, the kernel's VXLAN, a naive loop and ours, side by side in one run.

    python -m bench.forward [--underlay whole|wire|plain] [--rounds N] [--seconds N] [--json FILE] [--quick]
                            [--measures LIST|all] [--congestion-control cubic|default] [--workers LIST] [--rungs]
                            [--pods]
    python -m bench.forward --targets [--rounds N] [--seconds N] [--json FILE] [--quick]

A round takes every measure on every contender, one contender straight after the other, so that a machine that changes
its speed changes it for all. The table goes to stdout, progress to stderr. Needs root.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import chart, lookup, machine, report, targets
from bench.console import show
from bench.contenders import CARDS, CONTENDERS, Opener, Pair, open_contender, variants
from bench.cpu import ForeignWatch
from bench.datagrams import build_blast
from bench.generators import Load
from bench.measure import DEFAULT_MEASURES, MEASURES, default_congestion_control
from bench.report import Sample
from flannel_udp.errors import FlannelError, UsageError
from flannel_udp.lab import netns
from tests.support.cni import NEEDED, plugins_are_here

logger = logging.getLogger("bench")

_TOOLS = {"iperf3": "iperf3", "ping": "iputils-ping", "bridge": "iproute2", "cc": "gcc"}
"""Command → the Debian package that has it."""
_TRIES = 2
"""A sample that others disturbed is taken once more, not for ever: the time of a run stays bounded."""
_WORKERS_MAX = 64
CUBIC = "cubic"
"""Named, because the default of a machine may be BBR, which ignores the loss of a bad tunnel."""

Plan = Mapping[str, Sequence[str]]
"""Measure → the contenders that it is taken on."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line asked for; `max_foreign` is the load of others that is let pass, in percent of one core."""

    underlay: str
    rounds: int
    seconds: int
    measures: tuple[str, ...]
    workers: tuple[int, ...]
    rungs: bool
    pods: bool
    congestion_control: str
    targets: bool
    max_foreign: float
    json: Path | None

    @property
    def load(self) -> Load:
        """What the measures are given."""
        return Load(self.seconds, "" if self.congestion_control == "default" else self.congestion_control)

    @property
    def spoken_congestion_control(self) -> str:
        """The algorithm that runs."""
        return self.load.congestion_control or f"{default_congestion_control()} (the machine's default)"


def parse_arguments(argv: Sequence[str] | None) -> Settings:
    """Return the settings. Ends the process with exit code 2 and a clear line on a wrong argument."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.forward",
        description="Measure bare veth, the kernel's VXLAN, a naive loop and our agents, side by side.",
        allow_abbrev=False,
    )
    parser.add_argument("--underlay", choices=tuple(CARDS), help="the hosts' cards (default: wire)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument("--seconds", type=int, default=2, metavar="N", help="of each measure (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one round of one second")
    parser.add_argument(
        "--measures",
        type=_measures,
        metavar="LIST",
        help=f"all, or some of {', '.join(MEASURES)} (default: {','.join(DEFAULT_MEASURES)})",
    )
    parser.add_argument(
        "--workers", type=_workers, default=(), metavar="LIST", help="take our agents with so many workers as well: 1,2"
    )
    parser.add_argument(
        "--rungs", action="store_true", help="take our agents without each of the offloads, and without any, as well"
    )
    parser.add_argument(
        "--pods",
        action="store_true",
        help="take our agents from pod to pod as well, attached by hand and by the CNI plugin",
    )
    parser.add_argument(
        "--congestion-control", choices=(CUBIC, "default"), default=CUBIC, help="of TCP (default: %(default)s)"
    )
    parser.add_argument(
        "--targets", action="store_true", help="measure what the targets need, on all underlays, and judge it"
    )
    parser.add_argument(
        "--max-foreign",
        type=float,
        default=10.0,
        metavar="PERCENT",
        help="reject samples while other processes use more than this of one core (default: %(default)g)",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the samples, medians and ratios there, and a plot beside it"
    )
    given = parser.parse_args(argv)
    if not 1 <= given.rounds <= 100 or not 1 <= given.seconds <= 60:
        parser.error("give --rounds from 1 to 100 and --seconds from 1 to 60")
    if given.json and given.json.suffix == ".svg":
        parser.error("--json: the plot beside it takes the same name with .svg: give the file another suffix")
    if given.targets and (
        given.underlay
        or given.measures
        or given.workers
        or given.rungs
        or given.pods
        or given.congestion_control != CUBIC
    ):
        parser.error("--targets says by itself what is measured, and where")
    rounds, seconds = (1, 1) if given.quick else (given.rounds, given.seconds)
    return Settings(
        underlay=given.underlay or "wire",
        rounds=rounds,
        seconds=seconds,
        measures=given.measures or DEFAULT_MEASURES,
        workers=given.workers,
        rungs=given.rungs,
        pods=given.pods,
        congestion_control=given.congestion_control,
        targets=given.targets,
        max_foreign=given.max_foreign,
        json=given.json,
    )


def _measures(text: str) -> tuple[str, ...]:
    if text == "all":
        return tuple(MEASURES)
    names = text.split(",")
    unknown = [name for name in names if name not in MEASURES]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is no measure: use all, or some of {', '.join(MEASURES)}")
    return tuple(name for name in MEASURES if name in names)


def _workers(text: str) -> tuple[int, ...]:
    numbers = text.split(",")
    if not all(number.isascii() and number.isdecimal() and 1 <= int(number) <= _WORKERS_MAX for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers from 1 to {_WORKERS_MAX}, such as 1,2")
    return tuple(dict.fromkeys(map(int, numbers)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the bench and return the exit code."""
    settings = parse_arguments(argv)
    logging.basicConfig(format="%(name)s: %(message)s", level=logging.WARNING)
    logger.setLevel(logging.INFO)
    # Like Ctrl-C, so that the labs are taken down whatever ends us.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        _require(settings)
        if settings.targets:
            _judge(settings)
        else:
            _compare(settings)
    except FlannelError as error:
        logger.error("%s", error)
        return error.exit_code
    except KeyboardInterrupt:
        logger.error("interrupted; the labs are removed")
        return 128 + signal.SIGINT
    return 0


def _compare(settings: Settings) -> None:
    """Take the measures that were asked for on one underlay."""
    openers = {**CONTENDERS, **variants(settings.workers, rungs=settings.rungs, pods=settings.pods)}
    samples, mtus = run(settings, settings.underlay, dict.fromkeys(settings.measures, tuple(openers)), openers)
    title = f"underlay {settings.underlay}, {_spoken(settings)}"
    show(report.table(samples, tuple(openers), title))
    _show_rejected(settings, samples)
    if settings.json:
        document = report.document(machine.describe(), _options(settings), mtus, samples)
        chart.write(settings.json, document, [report.chart(samples, title)])


def _judge(settings: Settings) -> None:
    """Take what the targets need on each underlay, and say of each target whether it is met."""
    underlays: dict[str, dict[str, Any]] = {}
    charts, every = [], []
    for underlay in targets.underlays():
        samples, mtus = run(settings, underlay, targets.needed(underlay), CONTENDERS)
        underlays[underlay] = report.results(mtus, samples)
        charts.append(report.chart(samples, f"underlay {underlay}, {_spoken(settings)}"))
        every += samples
        show(report.table(samples, tuple(mtus), f"underlay {underlay}, {_spoken(settings)}"))
    found = lookup.measure()
    verdicts = targets.judge({name: of["ratios"] for name, of in underlays.items()}, lookup.judged(found))
    show(targets.table(verdicts, f"ours divided by the other's, {_spoken(settings)}"))
    _show_rejected(settings, every)
    if settings.json:
        document = {
            "machine": machine.describe(),
            "options": _options(settings),
            "targets": targets.records(verdicts),
            "underlays": underlays,
            "lookup": lookup.records(found),
        }
        chart.write(settings.json, document, charts)


def run(
    settings: Settings, underlay: str, plan: Plan, openers: Mapping[str, Opener]
) -> tuple[list[Sample], dict[str, int]]:
    """Take all samples; return them, and the overlay MTU of each contender in bytes. The labs are gone afterwards."""
    build_blast()
    with ExitStack() as stack:
        pairs = []
        for name in openers:
            if any(name in contenders for contenders in plan.values()):
                logger.info("underlay %s: setting up %s", underlay, name)
                pairs.append(stack.enter_context(open_contender(name, openers[name], underlay)))
        nominal_s = settings.rounds * sum(
            MEASURES[measure].nominal_s(settings.seconds) * len(contenders) for measure, contenders in plan.items()
        )
        logger.info("measuring: about %.0f s, at most twice that", nominal_s)
        samples = [
            sample
            for number in range(settings.rounds)
            for measure, contenders in plan.items()
            for pair in _rotated([pair for pair in pairs if pair.name in contenders], number)
            for sample in _take(settings, number + 1, measure, pair)
        ]
        return samples, {pair.name: pair.mtu for pair in pairs}


def _rotated(pairs: Sequence[Pair], by: int) -> list[Pair]:
    """Let another contender begin in every round, so that none always follows the same one."""
    first = by % len(pairs)
    return [*pairs[first:], *pairs[:first]]


def _take(settings: Settings, number: int, measure: str, pair: Pair) -> list[Sample]:
    """Take one sample; if others disturbed it, it is kept as rejected and taken once more."""
    samples: list[Sample] = []
    while len(samples) < _TRIES and not (samples and samples[-1].accepted):
        watch = ForeignWatch.start()
        values = MEASURES[measure].take(pair, settings.load)
        foreign = watch.share()
        accepted = foreign * 100 <= settings.max_foreign
        samples.append(Sample(number, pair.name, measure, foreign, accepted, values))
        shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        verdict = "" if accepted else f" - rejected: others used {foreign:.0%} of a core"
        logger.info("round %d/%d %s: %s%s", number, settings.rounds, pair.name, shown, verdict)
    return samples


def _require(settings: Settings) -> None:
    """Raise `FlannelError` with one clear line if the bench cannot run here."""
    netns.require()
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        packages = " ".join(_TOOLS[tool] for tool in missing)
        raise FlannelError(f"the bench needs {', '.join(missing)}: on Debian and Ubuntu apt-get install {packages}")
    if settings.pods and not plugins_are_here():
        raise FlannelError(f"--pods needs {NEEDED}")
    if settings.json and not os.access(settings.json.absolute().parent, os.W_OK):
        raise UsageError(f"--json {settings.json}: its folder is missing or not writable")


def _spoken(settings: Settings) -> str:
    return f"{settings.spoken_congestion_control}, {settings.rounds} rounds of {settings.seconds} s"


def _show_rejected(settings: Settings, samples: Sequence[Sample]) -> None:
    rejected = report.n_rejected(samples)
    if rejected:
        show(
            f"{rejected} of {len(samples)} samples were rejected: other processes used more than "
            f"{settings.max_foreign:g} % of one core meanwhile"
        )


def _options(settings: Settings) -> dict[str, Any]:
    options = dataclasses.asdict(settings)
    options["json"] = str(settings.json)
    options["congestion_control"] = settings.spoken_congestion_control
    return options


if __name__ == "__main__":
    sys.exit(main())
