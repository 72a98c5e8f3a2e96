"""What the benches say, and where: an unbuilt clone, and a screen of 80 columns."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from bench import cni, encap, instructions, lookup
from bench.console import WIDTH, show
from bench.hot_path import CASES
from bench.targets import FAR, GROUPS, LOOKUP, Verdict, table
from tests.support.patience import PATIENCE_S

ROOT = Path(__file__).parents[2]
MODULES = sorted(path.stem for path in (ROOT / "bench").glob("*.py") if "__main__" in path.read_text())


@pytest.fixture(scope="module")
def unbuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a clone in which nothing was built."""
    clone = tmp_path_factory.mktemp("clone")
    for folder in ("flannel_udp", "bench", "tests/support"):
        shutil.copytree(ROOT / folder, clone / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return clone


@pytest.mark.parametrize("module", MODULES)
def test_in_an_unbuilt_clone_each_bench_says_in_one_line_what_to_do(unbuilt: Path, module: str) -> None:
    # -S: without the packages that the tests run in, as in a fresh clone, whose folder they are imported from.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    command = [sys.executable, "-S", "-m", f"bench.{module}", "--help"]
    done = subprocess.run(
        command, cwd=unbuilt, env=env, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("bench: flannel-udp is not built for ")
    assert "pip install" in done.stderr


def every_table() -> dict[str, Table]:
    """Return one of each bench, with its widest figures."""
    judged = [
        Verdict(target, 0.0123, (0.00123, 0.0123), None if target.underlay in (LOOKUP, FAR) else 12.3)
        for target in GROUPS["all"]
    ]
    layouts = [lookup.Found(layout.title, 100_000, 213.45, 15_000_000) for layout in (lookup.IPV4, lookup.IPV6_FAR)]
    counts = dict.fromkeys(CASES, 12_345.6)
    return {
        "targets": table(judged, "ours divided by the other's, cubic, 15 rounds of 2 s"),
        "lookup": lookup._table(layouts),
        "encap": encap._table({stage: dict.fromkeys(encap._SEGMENTS, 12.3e6) for stage in encap.STAGES}),
        "instructions": instructions.table(counts, counts),
        "cni": cni._table({"ADD through the plugin less ADD of the bridge alone": 12.3}, "25 rounds"),
    }


@pytest.mark.parametrize("name", ["targets", "lookup", "encap", "instructions", "cni"])
def test_a_table_fits_80_columns_with_every_word_whole(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = every_table()[name]
    show(shown)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= WIDTH
    words = {word for line in lines for word in line.split(" ")}
    cells = [cell for column in shown.columns for cell in (column.header, *column.cells)]
    assert {word for cell in cells for word in str(cell).split(" ") if word} - words == set()
