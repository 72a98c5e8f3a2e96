"""The rows of docs/reliability.md: every test that one names exists, and what comes of it finds its place."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.faults.came_out import CameOut, Outcome, describe
from tests.faults.recorder import put_between
from tests.faults.rows import PAGE, ROOT, Row, Table, tables

pytest_plugins = ("pytester",)

ROWS = [row for table in tables() for row in table.rows]


def name_of(table: Table) -> str:
    return table.name


@cache
def names_in(file: Path) -> frozenset[str]:
    return frozenset(node.name for node in ast.walk(ast.parse(file.read_text())) if hasattr(node, "name"))


def exists(test: str) -> bool:
    file, _, function = test.partition("::")
    path = ROOT / file
    return (
        file.startswith(("tests/faults/", "tests/netns/", "tests/registry/", "tests/unit/"))
        and path.is_file()
        and (not function or function.partition("[")[0] in names_in(path))
    )


def test_every_test_of_a_row_exists() -> None:
    assert [row.input for row in ROWS if not row.tests] == []
    assert [test for row in ROWS for test in row.tests if not exists(test)] == []


def test_every_row_fits_in_its_table() -> None:
    texts = [text for row in ROWS for text in (row.input, row.before, row.now)]
    assert [text for text in texts if "|" in text.replace("\\|", "") or "\n" in text] == []


@pytest.mark.parametrize("table", tables(), ids=name_of)
def test_every_table_has_its_place_in_the_page_and_no_row_twice(table: Table) -> None:
    assert put_between(PAGE.read_text(), f"table {table.name}", "here").count("\n\nhere<!--") == 1
    assert len(set(table.rows)) == len(table.rows)


@pytest.mark.parametrize(
    ("test", "shown"),
    [
        ("tests/unit/test_a.py", True),
        ("tests/unit/test_a.py::test_one", True),
        ("tests/unit/test_a.py::test_one[x]", True),
        ("tests/unit/test_a.py::test_one[y]", False),
        ("tests/unit/test_a.py::test", False),
        ("tests/unit/test", False),
    ],
)
def test_a_row_knows_its_tests(test: str, shown: bool) -> None:
    assert Row("", "", "", (test,)).is_shown_by("tests/unit/test_a.py::test_one[x]") is shown


def test_what_came_out_is_one_phrase() -> None:
    assert describe([Outcome("passed", 3.14)]) == "passed, 3.1 s"
    outcomes = [
        Outcome("passed", 1.0, ["ready after 2 s"]),
        Outcome("skipped", 0.1),
        Outcome("passed", 2.0, ["1 line"]),
    ]
    assert describe(outcomes) == "2 passed, 1 skipped, 3.1 s; ready after 2 s; 1 line"


def test_a_run_writes_the_tables_whose_tests_all_ran(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = (Row("one", "bad", "good", ("test_it.py::test_one",)), Row("two", "bad", "good", ("test_it.py",)))
    found = (Table("x", ("a", "b", "c"), both), Table("y", ("a", "b", "c"), both[:1]))
    monkeypatch.setattr("tests.faults.came_out.tables", lambda: found)
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function")
    page = pytester.path / "page.md"
    empty = "".join(
        f"<!-- {what}: written by tox -e faults -->\n<!-- end of {what} -->\n"
        for what in ("figures", "table x", "table y")
    )
    page.write_text(empty)
    pytester.makepyfile(
        test_it="def test_one(record_property): record_property('figure', '7 of 7')\ndef test_two(): assert 0",
        test_other="def test_three(): assert 0",
    )
    pytester.inline_run("-k", "table_y", plugins=[CameOut(page)])
    lines = page.read_text().splitlines()
    assert lines[:4] == empty.splitlines()[:4]
    one = re.compile(r"\| one \| bad \| good \| passed, \d\.\d s; 7 of 7 \| `test_it\.py::test_one` \|")
    assert sum(one.search(line) is not None for line in lines) == 1
    result = pytester.inline_run(plugins=[CameOut(page)])
    assert (result.countoutcomes(), result.ret) == ([1, 0, 1], pytest.ExitCode.TESTS_FAILED)
    two = r"\| two \| bad \| good \| 1 failed, 1 passed, \d\.\d s; 7 of 7 \| `test_it\.py` \|"
    assert re.search(two, page.read_text())
