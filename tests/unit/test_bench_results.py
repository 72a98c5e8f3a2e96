"""Files of runs, whole and broken; what the commands make of them."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flannel_udp.bench.results import read_result
from flannel_udp.bench.sheets import command, figure, share
from flannel_udp.bench.writing import WIDTH
from flannel_udp.cli.main import main
from flannel_udp.errors import UnusableFile
from tests.support import bench_runs
from tests.support.bench_runs import run_document, samples, write_run

ROOT = Path(__file__).parents[2]
TARGETS = ROOT / "docs" / "targets.json"


def made(seed: str = "results") -> dict[str, Any]:
    document: dict[str, Any] = json.loads(json.dumps(run_document(samples(random.Random(seed)))))
    return document


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run.json", samples(random.Random("run")))


def test_a_run_is_read_as_it_was_written(run: Path) -> None:
    result = read_result(run)
    (place,) = result.places
    assert (place.name, place.mtus, result.n_rounds) == ("underlay wire, between pods", {"bare": 1500, "ours": 1472}, 5)
    assert list(place.samples) == samples(random.Random("run"))
    assert (dict(result.machine), dict(result.options)) == (bench_runs.MACHINE, bench_runs.OPTIONS)


def test_a_run_of_before_the_file_said_its_format_is_read_with_all_its_places() -> None:
    result = read_result(TARGETS)
    assert len(result.places) == 6
    assert (result.options["family"], result.n_rounds) == (4, 15)
    assert result.targets


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a list": (lambda _: [1], "no result of a bench"),
    "another bench's": (lambda _: {"machine": {}, "packets_per_s": {}}, "holds no samples"),
    "an older one's": (lambda raw: {"machine": raw["machine"], "samples": []}, "holds no samples"),
    "a newer format": (lambda raw: {**raw, "format": 2}, "has format 2, this flannel-udp reads 1: upgrade it"),
    "no format at all": (lambda raw: {**raw, "format": "x"}, "has format 'x'"),
    "nothing measured": (lambda raw: {**raw, "samples": []}, "holds no sample"),
    "samples that are no list": (lambda raw: {**raw, "samples": {}}, "samples that is no list"),
    "a sample that is none": (lambda raw: {**raw, "samples": [1]}, "samples that is no object"),
    "a machine that is none": (lambda raw: {**raw, "machine": "fast"}, "machine that is no object"),
    "places that are none": (lambda raw: {**raw, "places": [1]}, "places that is no object"),
    "no place's name": (lambda raw: {**raw, "options": {}}, "where a name belongs"),
    "a text that moves the cursor": (lambda raw: {**raw, "machine": {"cpu": "\x1b[2J"}}, "cannot be shown"),
    "half a round": (lambda raw: {**raw, "samples": [{**raw["samples"][0], "round": 1.5}]}, "round that is no whole"),
    "accepted by a number": (lambda raw: {**raw, "samples": [{**raw["samples"][0], "accepted": 1}]}, "`accepted`"),
    "a contender without a name": (lambda raw: {**raw, "samples": [{**raw["samples"][0], "contender": ""}]}, "a name"),
    "a text for a figure": (lambda raw: {**raw, "samples": [{**raw["samples"][0], "values": {"a": "1"}}]}, "a number"),
    "no number": (lambda raw: {**raw, "samples": [{**raw["samples"][0], "values": {"a": float("nan")}}]}, "a number"),
    "a number without end": (
        lambda raw: {**raw, "samples": [{**raw["samples"][0], "values": {"a": 10**400}}]},
        "a number",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_no_run_is_refused_in_one_line_that_names_it(
    name: str, tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, (change, said) = tmp_path / "broken.json", BROKEN[name]
    broken.write_text(json.dumps(change(made())))
    for argv in (["show", str(broken)], ["compare", str(run), str(broken)], ["compare", str(broken), str(run)]):
        assert main(["bench", *argv]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert err.startswith(f"flannel-udp: {broken} ")
        assert said in err


@pytest.mark.parametrize("content", [b"", b'{"machine": {', b"\xff\xfe", b"[" * 100_000, b"\x89PNG"])
def test_what_is_not_json_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(UnusableFile, match=r"^[^\n]*run\.json is not JSON[^\n]*$"):
        read_result(path)


def test_a_file_that_is_missing_or_a_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, why in ((tmp_path / "missing", "No such file"), (tmp_path, "Is a directory")):
        assert main(["bench", "show", str(path)]) == 2
        assert capsys.readouterr().err.startswith(f"flannel-udp: cannot read {path}: {why}")


def test_a_run_is_shown_in_80_columns_with_machine_and_command(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "show", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert "machine   Some CPU, 2 cores, x86_64" in lines
    assert any(line.startswith("command   python -m bench.forward --underlay wire") for line in lines)
    assert "TCP, 1 stream, Gbit/s (more is better)" in lines


def test_the_longest_names_of_contenders_fit_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # a path is never cut, however long it is
    figures = {"bare": 23456.0, "ours-no-udp-segment": 12345.0, "ours": 12345.0}
    runs = [str(write_run(Path(f"{n}.json"), samples(random.Random(n), figures, noise=0.3))) for n in range(2)]
    for argv in (["show", runs[0]], ["compare", *runs]):
        assert main(["bench", *argv]) == 0
        assert max(map(len, capsys.readouterr().out.splitlines())) <= WIDTH


def test_two_runs_are_compared_as_text_markdown_csv_and_json(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slower = {**bench_runs.FIGURES, "ours": 4.0}
    other = write_run(tmp_path / "new.json", samples(random.Random("new"), slower))
    shown = {}
    for form in ("--format=text", "--format=md", "--format=csv", "--json"):
        assert main(["bench", "compare", str(run), str(other), form]) == 0
        shown[form] = capsys.readouterr().out
    assert [line.split()[-1] for line in shown["--format=text"].splitlines() if line.startswith("ours ")] == [
        *("worse",) * 3,
        *("better",) * 3,
    ]
    assert shown["--format=md"].count("| **worse** |") == shown["--format=md"].count("| **better** |") == 3
    rows = list(csv.DictReader(io.StringIO(shown["--format=csv"])))
    document = json.loads(shown["--json"])
    assert [row["new_is"] for row in rows] == [row["new_is"] for row in document["rows"]]
    (ours,) = (row for row in document["rows"] if (row["contender"], row["metric"]) == ("ours", "tcp1_gbit_s"))
    assert ours["new_to_old_low"] < 0.5 < ours["new_to_old_high"] < 1
    assert ours["old_q1"] < ours["old_median"] < ours["old_q3"]


def test_two_formats_at_once_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "show", str(run), "--json", "--format=md"]) == 2
    assert "--json and --format are both given" in capsys.readouterr().err
    assert main(["bench", "show", str(run), "--format=html"]) == 2
    assert "'html' is not one of text, md, csv" in capsys.readouterr().err


def test_names_from_a_file_do_not_break_a_table_of_markdown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_run(tmp_path / "run.json", samples(random.Random("odd"), {"a|b`<i>": 1.0, "ours": 2.0}))
    assert main(["bench", "show", str(path), "--format=md"]) == 0
    assert "| a\\|b\\`\\<i> |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (
            read_result(TARGETS).options,
            "python -m bench.forward --rounds 15 --seconds 2 --targets udp --max-foreign 10",
        ),
        (
            {
                "underlay": "wire",
                "measures": ["tcp1", "rtt"],
                "workers": [1, 2],
                "rungs": True,
                "cni": False,
                "targets": "",
            },
            "python -m bench.forward --underlay wire --measures tcp1,rtt --workers 1,2 --rungs",
        ),
        ({"congestion_control": "bbr (the machine's default)"}, "python -m bench.forward --congestion-control default"),
    ],
)
def test_the_command_is_told_that_measures_it_once_more(options: dict[str, Any], shown: str) -> None:
    assert command(options) == shown


def test_figures_have_three_digits_and_shares_are_in_percent() -> None:
    assert [figure(value) for value in (0.01234, 1.5, 357.14, 24_900.0)] == ["0.0123", "1.5", "357", "24,900"]
    assert [share(value) for value in (0.0, 0.0123, 0.099, 0.0996, 0.5, 12.0)] == [
        *("0.0 %", "1.2 %", "9.9 %", "10 %", "50 %", "1200 %"),
    ]
