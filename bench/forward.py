"""How fast packets are forwarded: bare veth, the kernel's VXLAN, a naive loop and ours, side by side in one run.

    python -m bench.forward [--underlay whole|wire|plain] [--rounds N] [--seconds N] [--json FILE] [--quick]

A round takes every measure on every contender, one contender straight after the other, so that a machine that changes
its speed changes it for all. The table goes to stdout, progress to stderr. Needs root.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from bench import machine, report
from bench.contenders import CARDS, CONTENDERS, Pair, open_contender
from bench.cpu import ForeignWatch
from bench.measure import CONGESTION_CONTROL, MEASURES, UDP_PAYLOAD_BYTES, build_blast
from bench.report import Sample
from flannel_udp.errors import FlannelError, UsageError
from flannel_udp.lab import netns

logger = logging.getLogger("bench")

_TOOLS = {"iperf3": "iperf3", "ping": "iputils-ping", "bridge": "iproute2", "cc": "gcc"}
"""Command → the Debian package that has it."""
_TRIES = 2
"""A sample that others disturbed is taken once more, not for ever: the time of a run stays bounded."""
_OVERHEAD_S = 0.6
"""What a sample takes beside its measuring."""
_TABLE_WIDTH = 130


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line asked for; `max_foreign` is the load of others that is let pass, in percent of one core."""

    underlay: str
    rounds: int
    seconds: int
    max_foreign: float
    json: Path | None


def parse_arguments(argv: Sequence[str] | None) -> Settings:
    """Return the settings. Ends the process with exit code 2 and a clear line on a wrong argument."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.forward",
        description="Measure bare veth, the kernel's VXLAN, a naive loop and our agents, side by side.",
        allow_abbrev=False,
    )
    parser.add_argument("--underlay", choices=tuple(CARDS), default="wire", help="the hosts' cards (default: wire)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument("--seconds", type=int, default=2, metavar="N", help="of each measure (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one round of one second")
    parser.add_argument(
        "--max-foreign",
        type=float,
        default=10.0,
        metavar="PERCENT",
        help="reject samples while other processes use more than this of one core (default: %(default)g)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the samples, medians and ratios there")
    given = parser.parse_args(argv)
    if not 1 <= given.rounds <= 100 or not 1 <= given.seconds <= 60:
        parser.error("give --rounds from 1 to 100 and --seconds from 1 to 60")
    rounds, seconds = (1, 1) if given.quick else (given.rounds, given.seconds)
    return Settings(given.underlay, rounds, seconds, given.max_foreign, given.json)


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
        samples, mtus = run(settings)
        _show(settings, samples)
        if settings.json:
            _write(settings.json, settings, samples, mtus)
    except FlannelError as error:
        logger.error("%s", error)
        return error.exit_code
    except KeyboardInterrupt:
        logger.error("interrupted; the labs are removed")
        return 128 + signal.SIGINT
    return 0


def run(settings: Settings) -> tuple[list[Sample], dict[str, int]]:
    """Take all samples; return them, and the overlay MTU of each contender in bytes. The labs are gone afterwards."""
    build_blast()
    with ExitStack() as stack:
        pairs = []
        for name in CONTENDERS:
            logger.info("setting up %s", name)
            pairs.append(stack.enter_context(open_contender(name, settings.underlay)))
        n_samples = settings.rounds * len(MEASURES) * len(pairs)
        nominal_s = n_samples * (settings.seconds + _OVERHEAD_S)
        logger.info("%d samples: about %.0f s, at most twice that", n_samples, nominal_s)
        samples = [
            sample
            for number in range(settings.rounds)
            for measure in MEASURES
            for pair in _rotated(pairs, number)
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
        values = MEASURES[measure](pair, settings.seconds)
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
    if settings.json and not os.access(settings.json.absolute().parent, os.W_OK):
        raise UsageError(f"--json {settings.json}: its folder is missing or not writable")


def _show(settings: Settings, samples: Sequence[Sample]) -> None:
    title = f"underlay {settings.underlay}, {CONGESTION_CONTROL}, {settings.rounds} rounds of {settings.seconds} s"
    console = Console() if sys.stdout.isatty() else Console(width=_TABLE_WIDTH)
    console.print(report.table(samples, tuple(CONTENDERS), title))
    rejected = report.n_rejected(samples)
    if rejected:
        console.print(
            f"{rejected} of {len(samples)} samples were rejected: other processes used more than "
            f"{settings.max_foreign:g} % of one core meanwhile"
        )


def _write(path: Path, settings: Settings, samples: Sequence[Sample], mtus: dict[str, int]) -> None:
    options = dataclasses.asdict(settings) | {
        "json": str(path),
        "congestion_control": CONGESTION_CONTROL,
        "udp_payload_bytes": UDP_PAYLOAD_BYTES,
    }
    text = json.dumps(report.document(machine.describe(), options, mtus, samples), indent=2)
    try:
        path.write_text(text + "\n")
    except OSError as error:
        raise FlannelError(f"cannot write {path}: {error.strerror}") from None


if __name__ == "__main__":
    sys.exit(main())
