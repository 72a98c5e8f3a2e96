"""How fast packets are forwarded: bare veth, the kernel's VXLAN, a naive loop and ours, side by side in one run.

    python -m bench.forward [--underlay whole|wire|plain|slow-1g|slow-100m] [--between pods|hosts]
                            [--family 4|6] [--rounds N] [--seconds N] [--json FILE] [--quick] [--measures LIST|all]
                            [--congestion-control cubic|default] [--workers LIST] [--rungs] [--cni] [--backends]
    python -m bench.forward --targets [udp|backends|ipv6] [--rounds N] [--seconds N] [--json FILE] [--quick]

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import chart, far_and_near, lookup, report, targets
from bench.console import show
from bench.more_contenders import BACKENDS, IPV6, variants
from bench.targets import FAR, LOOKUP
from flannel_udp.bench import machine, names, results
from flannel_udp.bench.contenders import BETWEEN, CARDS, CONTENDERS, HOSTS, PODS, Where
from flannel_udp.bench.measuring import CUBIC, Run, Schedule, Taken
from flannel_udp.bench.quiet import Quiet
from flannel_udp.bench.samples import Sample, n_rejected
from flannel_udp.errors import FlannelError, UsageError
from flannel_udp.lab import netns
from tests.support.cni import NEEDED, plugins_are_here

logger = logging.getLogger("bench")

_TOOLS = {"iperf3": "iperf3", "ping": "iputils-ping", "bridge": "iproute2", "cc": "gcc"}
"""Command → the Debian package that has it."""
_WORKERS_MAX = 64


@dataclass(frozen=True, slots=True)
class Settings(Schedule):
    """What the command line asked for."""

    underlay: str
    between: str
    family: int
    measures: tuple[str, ...]
    workers: tuple[int, ...]
    rungs: bool
    cni: bool
    backends: bool
    targets: str
    """Which group of them is judged; empty for none."""

    json: Path | None


def parse_arguments(argv: Sequence[str] | None) -> Settings:
    """Return the settings. Ends the process with exit code 2 and a clear line on a wrong argument."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.forward",
        description="Measure bare veth, the kernel's VXLAN, a naive loop and our agents, side by side.",
        allow_abbrev=False,
    )
    parser.add_argument("--underlay", choices=tuple(CARDS), help="the hosts' cards (default: wire)")
    parser.add_argument("--between", choices=BETWEEN, help=f"what traffic goes between (default: {PODS})")
    parser.add_argument(
        "--family", type=int, choices=(4, 6), help="the IP version of packets, inside and outside (default: 4)"
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument("--seconds", type=int, default=2, metavar="N", help="of each measure (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one round of one second")
    parser.add_argument(
        "--measures",
        type=_measures,
        metavar="LIST",
        help=f"all, or some of {', '.join(names.KINDS)} (default: {','.join(names.DEFAULT)})",
    )
    parser.add_argument(
        "--workers", type=_workers, default=(), metavar="LIST", help="take our agents with so many workers as well: 1,2"
    )
    parser.add_argument(
        "--rungs", action="store_true", help="take our agents without each of the offloads, and without any, as well"
    )
    parser.add_argument(
        "--cni",
        action="store_true",
        help="take our agents with --ip-masq as well, and with pods that the CNI plugin adds",
    )
    parser.add_argument(
        "--backends",
        action="store_true",
        help="take our agents with vxlan and ipip in userspace, beside the kernel's VXLAN, and with host-gw as well",
    )
    parser.add_argument(
        "--congestion-control", choices=(CUBIC, "default"), default=CUBIC, help="of TCP (default: %(default)s)"
    )
    parser.add_argument(
        "--targets",
        nargs="?",
        choices=tuple(targets.GROUPS),
        const="all",
        default="",
        help="measure what the targets need, on all underlays, and judge it (default: %(const)s)",
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
        or given.between
        or given.family
        or given.rungs
        or given.cni
        or given.backends
        or given.congestion_control != CUBIC
    ):
        parser.error("--targets says by itself what is measured, and where")
    if given.cni and given.between == HOSTS:
        parser.error("--cni is about pods: leave out --between hosts")
    try:
        names.check_payloads(given.measures or (), given.family or 4)
    except UsageError as error:
        parser.error(str(error))
    if given.family == 6 and (given.backends or given.cni):
        parser.error("--family 6 is about udp: leave out --backends and --cni")
    rounds, seconds = (1, 1) if given.quick else (given.rounds, given.seconds)
    return Settings(
        underlay=given.underlay or "wire",
        between=given.between or PODS,
        family=given.family or 4,
        rounds=rounds,
        seconds=seconds,
        measures=given.measures or names.DEFAULT,
        workers=given.workers,
        rungs=given.rungs,
        cni=given.cni,
        backends=given.backends,
        congestion_control=given.congestion_control,
        targets=given.targets,
        max_foreign=given.max_foreign,
        json=given.json,
    )


def _measures(text: str) -> tuple[str, ...]:
    try:
        return names.parse_measures(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


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
    """Take the measures that were asked for on one underlay. What was taken is kept, whatever ends it."""
    openers = {
        **CONTENDERS,
        **(BACKENDS if settings.backends else {}),
        **variants(settings.workers, rungs=settings.rungs, cni=settings.cni),
    }
    place = Where(settings.underlay, settings.between, settings.family)
    taken = Taken()
    try:
        plan = dict.fromkeys(settings.measures, tuple(openers))
        Run(settings, taken, _quiet(settings)).in_labs(place, plan, openers)
    finally:
        if taken.samples:
            title = _title(settings, place)
            try:
                _keep(settings, results.place_record(taken.mtus, taken.samples), {title: taken.samples})
            finally:
                sys.stdout.write(report.table(taken.samples, taken.mtus, title))
                _show_rejected(settings, taken.samples)


def _judge(settings: Settings) -> None:
    """Take what the targets need in each place, and say of each whether it is met. What was taken is kept."""
    judged = targets.GROUPS[settings.targets]
    found: dict[Where, Taken] = {}
    found_elsewhere: dict[str, Any] = {}
    elsewhere: dict[str, Mapping[str, float]] = {}
    try:
        for place in targets.places(judged):
            found[place] = Taken()
            plan = targets.needed(judged, place)
            run = Run(settings, found[place], _quiet(settings))
            run.in_labs(place, plan, {**CONTENDERS, **BACKENDS, **IPV6})
            sys.stdout.write(report.table(found[place].samples, found[place].mtus, _title(settings, place)))
        if FAR in targets.elsewhere(judged):
            logger.info("a near peer beside a slow one")
            found_elsewhere["far_and_near"] = near = far_and_near.measure(settings.rounds, settings.seconds, dead=0)
            elsewhere[FAR] = far_and_near.judged(near)
        if LOOKUP in targets.elsewhere(judged):
            looked_up = lookup.measure()
            found_elsewhere["lookup"] = lookup.records(looked_up)
            elsewhere[LOOKUP] = lookup.judged(looked_up)
    finally:
        of_places = {place: taken.samples for place, taken in found.items() if taken.samples}
        if of_places:
            verdicts = targets.judge(judged, of_places, elsewhere)
            places = {
                place.title: results.place_record(found[place].mtus, samples) for place, samples in of_places.items()
            }
            everything = {"places": places, **found_elsewhere, "targets": targets.records(verdicts)}
            try:
                _keep(settings, everything, {_title(settings, place): samples for place, samples in of_places.items()})
            finally:
                show(targets.table(verdicts, f"ours divided by the other's, {_spoken(settings)}"))
                _show_rejected(settings, [sample for samples in of_places.values() for sample in samples])


def _keep(settings: Settings, found: Mapping[str, Any], drawn: Mapping[str, Sequence[Sample]]) -> None:
    """Write what was found where it was asked for, and the plots of the samples beside it, by title.

    Comes before anything is shown, and what is shown is shown all the same: neither a full disk nor a reader of stdout
    who has gone costs the other one.
    """
    if settings.json:
        document = results.document(machine.describe(), _options(settings), found)
        chart.write(settings.json, document, [report.chart(samples, title) for title, samples in drawn.items()])
        logger.info("written: %s", settings.json)


def _quiet(settings: Settings) -> Quiet:
    """Return what does not wait: a run of the targets takes half an hour, and may be left alone with a busy machine."""
    return Quiet(settings.max_foreign, wait_s=0)


def _require(settings: Settings) -> None:
    """Raise `FlannelError` with one clear line if the bench cannot run here."""
    netns.require()
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        packages = " ".join(_TOOLS[tool] for tool in missing)
        raise FlannelError(f"the bench needs {', '.join(missing)}: on Debian and Ubuntu apt-get install {packages}")
    if settings.cni and not plugins_are_here():
        raise FlannelError(f"--cni needs {NEEDED}")
    if settings.json and not os.access(settings.json.absolute().parent, os.W_OK):
        raise UsageError(f"--json {settings.json}: its folder is missing or not writable")


def _title(settings: Settings, place: Where) -> str:
    return f"{place.title}, {_spoken(settings)}"


def _spoken(settings: Settings) -> str:
    return f"{settings.spoken_congestion_control}, {settings.rounds} rounds of {settings.seconds} s"


def _show_rejected(settings: Settings, samples: Sequence[Sample]) -> None:
    rejected = n_rejected(samples)
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
