"""Instructions a packet: what callgrind counts is read rightly, comes out the same again, and can be compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bench import hot_path, instructions
from flannel_udp.errors import FlannelError

HEADERS = Path("/usr/include/valgrind/callgrind.h")


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A file as --json writes it."""
    path = tmp_path / "before.json"
    path.write_text(json.dumps({"instructions_per_packet": dict.fromkeys(hot_path.CASES, 400.0)}))
    return path


@pytest.mark.parametrize("name", hot_path.CASES)
def test_every_case_moves_all_of_its_packets(name: str) -> None:
    ended: list[str] = []
    moved = hot_path.run(hot_path.CASES[name], lambda: ended.append(name))
    assert moved % hot_path.CASES[name].packets == 0
    assert len(ended) == hot_path.REPETITIONS


@pytest.mark.skipif(shutil.which("valgrind") is None or not HEADERS.exists(), reason="needs valgrind and its headers")
def test_the_same_build_takes_the_same_number_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "before.json"
    assert instructions.main(["--json", str(file)]) == 0
    before = instructions.read_counts(file)
    assert all(50 < count < 5_000 for count in before.values())
    again = instructions.measure()
    assert again == {name: pytest.approx(count, rel=0.005) for name, count in before.items()}
    assert "in, TCP joined" in capsys.readouterr().out


def test_a_dump_tells_its_case_and_its_count() -> None:
    text = "version: 1\ndesc: Trigger: Client Request: in_tcp\nevents: Ir\nsummary: 860960\n\ntotals: 860960\n"
    assert instructions.parse_dump(text) == ("in_tcp", 860_960)


def test_a_dump_in_another_format_is_refused() -> None:
    with pytest.raises(FlannelError, match="cannot read"):
        instructions.parse_dump("version: 2\n")


def test_the_figures_of_another_build_stand_beside_ours_with_their_ratio(written: Path) -> None:
    found = dict.fromkeys(hot_path.CASES, 408.0)
    drawn = instructions.table(found, instructions.read_counts(written))
    assert [list(column.cells) for column in drawn.columns[1:]] == [["408.0"] * 4, ["400.0"] * 4, ["1.020"] * 4]
    assert len(instructions.table(found, None).columns) == 2


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"instructions_per_packet": {"out_small": 1}}'])
def test_a_file_that_holds_no_figures_is_one_clear_line(written: Path, text: str) -> None:
    written.write_text(text)
    with pytest.raises(FlannelError, match=r"before\.json holds no figures of these cases: give a file that --json"):
        instructions.read_counts(written)


def test_a_file_that_is_not_there_is_one_clear_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert instructions.main(["--against", str(tmp_path / "no.json")]) == 1
    assert [record.message for record in caplog.records] == [
        f"cannot read {tmp_path / 'no.json'}: No such file or directory"
    ]


def test_without_valgrind_the_bench_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(FlannelError, match="was not found: the bench needs valgrind"):
        instructions.measure()
