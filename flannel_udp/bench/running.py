"""`bench run`: measure on this machine, show it, and keep what was measured whatever ends it."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from flannel_udp.bench.choosing import SHOWN, lacking_in_labs, openers_of
from flannel_udp.bench.contenders import Where
from flannel_udp.bench.machine import describe
from flannel_udp.bench.measuring import Run, Schedule, Taken
from flannel_udp.bench.names import check_payloads
from flannel_udp.bench.page import page
from flannel_udp.bench.quiet import Quiet
from flannel_udp.bench.results import Result, document, place_record, result_of
from flannel_udp.bench.samples import n_rejected
from flannel_udp.bench.showing import show_result, write_file
from flannel_udp.errors import Faults, FlannelError, UsageError
from flannel_udp.lab.interruptible import interruptible, uninterrupted
from flannel_udp.lab.progress import progress

PROGRAM = "flannel-udp bench run"
_LOGGER = logging.getLogger("bench")
_ELSEWHERE = (Path(tempfile.gettempdir()), Path("/dev/shm"))  # noqa: S108 - a folder with a name of its own is made there
"""Where a result goes that cannot be written where it should: the second one is memory."""


class Wanted(Protocol):
    """What to measure, and where; `options` are what the result says of it."""

    @property
    def options(self) -> dict[str, Any]: ...  # noqa: D102

    def measure(self, run: Run) -> None:
        """Take all samples."""
        ...

    def found(self, taken: Taken) -> dict[str, Any]:
        """Return what was found, as the result has it."""
        ...

    def machine(self) -> dict[str, Any]:
        """Return what the result says of where it was measured."""
        ...


@dataclass(frozen=True, slots=True)
class Output:
    """Where the result goes: the file of all samples, an HTML report if wished for, and the form of what is shown."""

    file: Path
    report: Path | None
    form: str

    def check(self) -> None:
        """Raise `UsageError` before anything is measured if a file could not be written afterwards."""
        for flag, path in (("-o", self.file), ("--report", self.report)):
            if path is None:
                continue
            if path.is_dir():
                raise UsageError(f"{flag} {path} is a folder: name a file in it")
            if not os.access(path.absolute().parent, os.W_OK):
                raise UsageError(f"{flag} {path}: its folder is missing or not writable")
        if self.report is not None and self.report.absolute() == self.file.absolute():
            raise UsageError(f"-o and --report both name {self.file}: the report needs a file of its own")


@dataclass(frozen=True, slots=True)
class InLabs:
    """What to compare in labs of this machine; `contenders` as the command line calls them."""

    contenders: tuple[str, ...]
    measures: tuple[str, ...]
    place: Where
    offload: str

    def check(self) -> None:
        """Raise `UsageError` for what makes no sense, and `Faults` with a line for each thing that is lacking."""
        check_payloads(self.measures, self.place.version)
        lacking = lacking_in_labs((*self.contenders, *self.measures, self.place.underlay))
        if lacking:
            raise Faults(lacking)

    @property
    def options(self) -> dict[str, Any]:
        """What of it the result says."""
        underlay, between, family = self.place
        return {
            "contenders": list(self.contenders),
            "underlay": underlay,
            "between": between,
            "family": family,
            "measures": list(self.measures),
            "offload": self.offload,
        }

    def measure(self, run: Run) -> None:
        """Take all samples."""
        shown = tuple(SHOWN[name] for name in SHOWN if name in self.contenders)
        run.in_labs(self.place, dict.fromkeys(self.measures, shown), openers_of(self.contenders, self.offload))

    def found(self, taken: Taken) -> dict[str, Any]:
        """Return what was found, as the result has it."""
        return place_record(taken.mtus, taken.samples)

    def machine(self) -> dict[str, Any]:
        """Return this machine."""
        return describe()


def run_and_keep(wanted: Wanted, schedule: Schedule, quiet: Quiet, output: Output) -> int:
    """Measure, keep and show; return the exit code.

    Raises `FlannelError` for what failed, and SystemExit for a signal, after all that was measured is kept and shown.
    """
    options = {
        "program": PROGRAM,
        **wanted.options,
        "rounds": schedule.rounds,
        "seconds": schedule.seconds,
        "max_foreign": schedule.max_foreign,
        "wait": f"{quiet.wait_s:g}s",
    }
    taken = Taken()
    kept = _Kept(output)
    with progress(_LOGGER, "bench"):
        try:
            with interruptible():
                try:
                    wanted.measure(Run(schedule, taken, quiet))
                finally:
                    if taken.samples:
                        with uninterrupted():
                            made = document(wanted.machine(), options, wanted.found(taken))
                            kept.write(json.dumps(made, indent=2) + "\n")
        except SystemExit:
            _LOGGER.error("interrupted%s", "" if taken.samples else " before there was a sample: nothing is kept")
            raise
        finally:
            kept.show()
            if taken.samples and n_rejected(taken.samples) == len(taken.samples):
                _LOGGER.warning(
                    "every sample was rejected: leave the machine alone meanwhile, or let more pass by --max-foreign"
                )
    return 1 if kept.failed else 0


class _Kept:
    """What becomes of a result: its files, each written as well as can be, and what is shown."""

    def __init__(self, output: Output) -> None:
        self.failed = False
        self._output = output
        self._result: Result | None = None

    def write(self, text: str) -> None:
        """Write the files; what cannot be written is said, and keeps nothing else from being written."""
        output = self._output
        self._result = result_of(output.file, text)
        self._write(output.file, text)
        if output.report is not None:
            self._write(output.report, page(self._result))

    def _write(self, path: Path, text: str) -> None:
        try:
            write_file(path, text)
        except FlannelError as error:
            self.failed = True
            self._write_elsewhere(path, text, error)
        else:
            _LOGGER.info("written: %s", path)

    @staticmethod
    def _write_elsewhere(path: Path, text: str, error: FlannelError) -> None:
        """Keep it where there may be room: what took minutes to measure shall not be lost to a full disk."""
        for folder in _ELSEWHERE:
            with suppress(OSError):
                made = Path(tempfile.mkdtemp(prefix="flannel-udp-bench-", dir=folder))
                try:
                    write_file(made / path.name, text)
                except FlannelError:
                    made.rmdir()
                    continue
                _LOGGER.error("%s; written instead: %s", error, made / path.name)
                return
        _LOGGER.error("%s; nor is there room in %s", error, ", ".join(map(str, _ELSEWHERE)))

    def show(self) -> None:
        """Write to standard output what was measured, if anything was."""
        if self._result is not None:
            show_result(self._result, self._output.form, sys.stdout)
