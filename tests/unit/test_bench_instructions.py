"""Instructions a packet: what callgrind counts is read rightly, comes out the same again, and can be compared."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from bench import hot_path, instructions
from flannel_udp.errors import FlannelError

HEADERS = Path("/usr/include/valgrind/callgrind.h")

MOST: instructions.Counts = {
    "out_small": 409.1,
    "out_tcp": 762.5,
    "in_small": 393.6,
    "in_tcp": 935.7,
    "vxlan_out_small": 404.2,
    "vxlan_out_tcp": 781.2,
    "vxlan_in_small": 500.6,
    "vxlan_in_tcp": 1051.9,
    "vxlan_in_begun": 1046.7,
    "out_small_v6": 433.5,
    "out_tcp_v6": 729.4,
    "in_small_v6": 501.7,
    "in_tcp_v6": 1043.7,
    "vxlan_out_small_v6": 445.5,
    "vxlan_out_tcp_v6": 752.5,
    "vxlan_in_small_v6": 629.7,
    "vxlan_in_tcp_v6": 1180.8,
    "vxlan_in_begun_v6": 1162.7,
}
"""Instructions a packet on 2026-11-28, IPv6's a day later; before VXLAN came udp's were 432.0, 785.9, 417.5, 957.6."""


def _compiler() -> tuple[str, str]:
    cc = shutil.which("cc")
    version = subprocess.run([cc, "-dumpversion"], capture_output=True, text=True, check=False).stdout if cc else ""
    return platform.machine(), version.strip()


COMPILER = _compiler()


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


needs_valgrind = pytest.mark.skipif(
    shutil.which("valgrind") is None or not HEADERS.exists(), reason="needs valgrind and its headers"
)


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> instructions.Counts:
    """What `--json` writes for this build."""
    file = tmp_path_factory.mktemp("bench") / "before.json"
    assert instructions.main(["--json", str(file)]) == 0
    return instructions.read_counts(file)


@needs_valgrind
def test_the_same_build_takes_the_same_number_again(counted: instructions.Counts) -> None:
    assert all(50 < count < 5_000 for count in counted.values())
    assert instructions.measure() == {name: pytest.approx(count, rel=0.005) for name, count in counted.items()}


@needs_valgrind
@pytest.mark.skipif(COMPILER != ("x86_64", "12"), reason="the numbers are those of gcc 12 on x86-64")
@pytest.mark.parametrize("name", MOST)
def test_no_packet_costs_more_than_it_did(counted: instructions.Counts, name: str) -> None:
    assert counted[name] <= 1.02 * MOST[name]


def test_a_dump_tells_its_case_and_its_count() -> None:
    text = "version: 1\ndesc: Trigger: Client Request: in_tcp\nevents: Ir\nsummary: 860960\n\ntotals: 860960\n"
    assert instructions.parse_dump(text) == ("in_tcp", 860_960)


def test_a_dump_in_another_format_is_refused() -> None:
    with pytest.raises(FlannelError, match="cannot read"):
        instructions.parse_dump("version: 2\n")


def test_the_figures_of_another_build_stand_beside_ours_with_their_ratio(written: Path) -> None:
    found = dict.fromkeys(hot_path.CASES, 408.0)
    drawn = instructions.table(found, instructions.read_counts(written))
    n = len(hot_path.CASES)
    assert [list(column.cells) for column in drawn.columns[1:]] == [["408.0"] * n, ["400.0"] * n, ["1.020"] * n]
    assert len(instructions.table(found, None).columns) == 2


def test_a_case_that_the_other_build_lacks_stands_alone(written: Path) -> None:
    written.write_text('{"instructions_per_packet": {"out_small": 400}}')
    drawn = instructions.table(dict.fromkeys(hot_path.CASES, 408.0), instructions.read_counts(written))
    assert [list(column.cells)[:2] for column in drawn.columns[1:]] == [["408.0"] * 2, ["400.0", ""], ["1.020", ""]]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"instructions_per_packet": {"of another bench": 1}}'])
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
