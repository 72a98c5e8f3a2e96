"""What docs/reliability.md says was wrong and is right, as data: `rows/` has a file for each of its tables.

A row names the tests that show it, so that each can be run by itself: `python -m pytest NODE`. `tox -e faults` runs
them all, each once however many rows name it, and writes what came of it beside each row (`came_out.py`).
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reliability.md"
FOLDER = Path(__file__).parent / "rows"


@dataclass(frozen=True, slots=True)
class Row:
    """What stands in the table, and the tests: a file, or a test in it, with or without its parameters."""

    input: str
    before: str
    now: str
    tests: tuple[str, ...]

    def is_shown_by(self, node: str) -> bool:
        """Tell whether a test, by pytest's id of it, is one of this row's."""
        return any(node == test or node.startswith((f"{test}::", f"{test}[")) for test in self.tests)


@dataclass(frozen=True, slots=True)
class Table:
    """One table: ``name``, its file's, says where in the page it stands; ``columns`` are the heads of the texts."""

    name: str
    columns: tuple[str, str, str]
    rows: Sequence[Row]


@cache
def tables() -> tuple[Table, ...]:
    """Return all tables."""
    return tuple(_read(path) for path in sorted(FOLDER.glob("*.toml")))


def _read(path: Path) -> Table:
    document = tomllib.loads(path.read_text())
    rows = [Row(row["input"], row["before"], row["now"], tuple(row["tests"])) for row in document["row"]]
    first, second, third = document["columns"]
    return Table(path.stem, (first, second, third), rows)
