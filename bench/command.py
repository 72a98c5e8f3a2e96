"""The command line of a bench that has nothing to choose: measure, show, and write the figures where it is told to."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from bench import chart
from bench.console import show
from flannel_udp.bench import machine
from flannel_udp.errors import FlannelError


class Findings(NamedTuple):
    """What a bench has found: to be shown, to be written as JSON, to be drawn."""

    table: Table
    records: Mapping[str, Any]
    charts: Sequence[chart.Chart]


def parser_of(name: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser for the bench of the module `name`; its help has the lines of the description as they are."""
    return argparse.ArgumentParser(
        prog=f"python -m {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def run(name: str, description: str | None, measure: Callable[[], Findings], argv: Sequence[str] | None) -> int:
    """Run the bench of the module `name` and return the exit code."""
    parser = parser_of(name, description)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, and a plot beside it")
    given = parser.parse_args(argv)
    logging.basicConfig(format="%(name)s: %(message)s")
    try:
        found = measure()
        show(found.table)
        if given.json:
            chart.write(given.json, {"machine": machine.describe(), **found.records}, found.charts)
    except FlannelError as error:
        logging.getLogger("bench").error("%s", error)
        return error.exit_code
    return 0
