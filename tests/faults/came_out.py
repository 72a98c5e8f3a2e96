"""A pytest plugin: runs the tests that the rows name, beside the faults of this folder, and writes what came out.

Where a test tells a figure, `record_property("figure", "ready after 2.1 s")`, it stands beside its row. A table is
written if all its tests ran: `-k table_a` runs one table's, `-k rows` all of them, `-k "not rows"` the faults alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.faults.recorder import Recorder, circumstances, put_between
from tests.faults.rows import Row, Table, tables

NAME = "what came out"
FAULTS = "tests/faults/"


@dataclass(slots=True)
class Outcome:
    """What came of one test, all its phases together."""

    result: str = "passed"
    seconds: float = 0.0
    figures: list[str] = field(default_factory=list)
    ended: bool = False


class CameOut:
    """What came of every test of this run."""

    def __init__(self, page: Path) -> None:
        self.recorder = Recorder()
        self._page = page
        self._nodes: list[str] = []
        self._outcomes: dict[str, Outcome] = {}

    @pytest.hookimpl(tryfirst=True)  # before -k, which is to find the words, chooses
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leave out what no row names."""
        named: list[pytest.Item] = []
        others: list[pytest.Item] = []
        for item in items:
            shown = [table for table in tables() for row in table.rows if row.is_shown_by(item.nodeid)]
            if shown:
                item.extra_keyword_matches.update({"rows", *(f"table_{table.name}" for table in shown)})
            (named if shown or item.nodeid.startswith(FAULTS) else others).append(item)
        items[:] = named
        self._nodes = [item.nodeid for item in named]
        config.hook.pytest_deselected(items=others)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note what came of a phase of a test."""
        outcome = self._outcomes.setdefault(report.nodeid, Outcome())
        outcome.seconds += report.duration
        if report.outcome != "passed" and outcome.result != "failed":
            outcome.result = report.outcome
        if report.when == "teardown":
            outcome.figures = [str(value) for name, value in report.user_properties if name == "figure"]
            outcome.ended = True

    def pytest_sessionfinish(self) -> None:
        """Write the tables whose tests all ran."""
        text = self._page.read_text()
        if self._ran(node for node in self._nodes if node.startswith(FAULTS)):
            text = put_between(text, "figures", self.recorder.table())
        for table in tables():
            shown = {row: [node for node in self._nodes if row.is_shown_by(node)] for row in table.rows}
            if all(nodes and self._ran(nodes) for nodes in shown.values()):
                text = put_between(text, f"table {table.name}", self._table(table, shown))
        self._page.write_text(text)

    def _ran(self, nodes: Iterable[str]) -> bool:
        found = [self._outcomes.get(node) for node in nodes]
        return bool(found) and all(outcome is not None and outcome.ended for outcome in found)

    def _table(self, table: Table, shown: Mapping[Row, Sequence[str]]) -> str:
        lines = [circumstances(), "", f"| {' | '.join(table.columns)} | came out | test |", "|---|---|---|---|---|"]
        for row, nodes in shown.items():
            tests = ", ".join(f"`{test}`" for test in row.tests)
            came_out = describe([self._outcomes[node] for node in nodes])
            lines.append(f"| {row.input} | {row.before} | {row.now} | {came_out} | {tests} |")
        return "\n".join([*lines, ""])


def describe(outcomes: Sequence[Outcome]) -> str:
    """Return what came of a row's tests: ``passed, 3.1 s``, or ``2 passed, 1 skipped, 4.0 s``, and their figures."""
    counts = Counter(outcome.result for outcome in outcomes)
    results = [result if len(outcomes) == 1 else f"{n} {result}" for result, n in sorted(counts.items())]
    seconds = sum(outcome.seconds for outcome in outcomes)
    figures = [figure for outcome in outcomes for figure in outcome.figures]
    return "; ".join([", ".join([*results, f"{seconds:.1f} s"]), *figures])
