"""Two runs of benches beside each other: no difference where there is none, and one that is there."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

from flannel_udp.bench.comparing import MACHINE, compare
from flannel_udp.bench.intervals import draw, interval, student_t
from flannel_udp.bench.judging import BETTER, NO_RATIO, SAME, TOO_FEW, WORSE, judge
from flannel_udp.bench.results import Result, read_result
from flannel_udp.errors import UsageError
from tests.support import bench_runs
from tests.support.bench_runs import FIGURES, run_of, samples

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("freedom", "outside", "t"),
    [(1, 0.05, 12.706), (4, 0.05, 2.776), (5, 0.01, 4.032), (8, 0.05, 2.306), (28, 0.001, 3.674)],
)
def test_student_t_is_that_of_the_tables(freedom: int, outside: float, t: float) -> None:
    assert student_t(freedom, outside) == pytest.approx(t, abs=0.001)


@pytest.mark.parametrize("rounds", [5, 15])
def test_two_runs_of_one_build_show_no_difference(tmp_path: Path, rounds: int) -> None:
    """Twelve pairs with 24 rows each: of their 288 verdicts 14 would be wrong if each was read by itself."""
    chooser = random.Random(f"one build, {rounds}")
    pairs = [[run_of(tmp_path / f"{n}.json", samples(chooser, rounds=rounds)) for n in range(2)] for _ in range(12)]
    verdicts = [[row.verdict for row in compare(*pair).rows] for pair in pairs]
    assert sum(any(verdict != SAME for verdict in each) for each in verdicts) <= 1
    assert {len(each) for each in verdicts} == {24}


def half_of_targets(path: Path, *, odd: bool, ours: float = 1.0) -> Result:
    """Write every other round of a real run, on a machine whose VXLAN has two speeds; ours may be made slower."""
    document = json.loads((ROOT / "docs" / "targets.json").read_text())
    for place in document["places"].values():
        place["samples"] = [sample for sample in place["samples"] if sample["round"] % 2 == odd]
        for sample in place["samples"]:
            if sample["contender"] == "ours":
                sample["values"] = {name: ours * value for name, value in sample["values"].items()}
    path.write_text(json.dumps(document))
    return read_result(path)


def test_halves_of_a_real_run_show_no_difference(tmp_path: Path) -> None:
    halves = [half_of_targets(tmp_path / f"{odd}.json", odd=odd) for odd in (False, True)]
    rows = compare(*halves).rows
    assert len(rows) > 60
    assert {row.verdict for row in rows} == {SAME, NO_RATIO}


def test_of_a_real_run_what_became_slower_by_half_is_found_in_every_place(tmp_path: Path) -> None:
    old = half_of_targets(tmp_path / "old.json", odd=False)
    rows = compare(old, half_of_targets(tmp_path / "new.json", odd=True, ours=0.5)).rows
    found = {row.place for row in rows if row.verdict == WORSE}
    assert found == {place.name for place in old.places}
    assert {row.contender for row in rows if row.verdict in (BETTER, WORSE)} == {"ours"}


def test_a_real_difference_is_found_in_the_build_that_has_it_with_its_interval(tmp_path: Path) -> None:
    chooser = random.Random("slower")
    old = run_of(tmp_path / "old.json", samples(chooser))
    new = run_of(tmp_path / "new.json", samples(chooser, {**FIGURES, "ours": 5.6}))
    rows = {(row.metric.name, row.contender): row for row in compare(old, new).rows}
    for (metric, contender), row in rows.items():
        ours = WORSE if row.metric.higher_is_better else BETTER
        assert row.verdict == (ours if contender == "ours" else SAME), (metric, contender)
    ratio = rows["tcp1_gbit_s", "ours"].ratio
    assert ratio is not None
    assert ratio.low < 0.7 < ratio.high < 1


def test_what_no_difference_could_have_hidden_is_said(tmp_path: Path) -> None:
    chooser = random.Random("visible")
    for rounds, at_most in ((5, 0.35), (15, 0.15)):
        runs = [run_of(tmp_path / f"{n}.json", samples(chooser, rounds=rounds)) for n in range(2)]
        visible = [row.ratio.visible for row in compare(*runs).rows if row.ratio]
        assert 0.01 < min(visible) < max(visible) < at_most


def test_a_machine_that_was_slower_is_not_taken_for_a_build_that_is(tmp_path: Path) -> None:
    chooser = random.Random("slower machine")
    old = run_of(tmp_path / "old.json", samples(chooser, rounds=15))
    new = run_of(
        tmp_path / "new.json", samples(chooser, {who: 0.8 * figure for who, figure in FIGURES.items()}, rounds=15)
    )
    rows = compare(old, new).rows
    assert {row.verdict for row in rows} == {MACHINE}
    beside = [row.beside for row in rows if row.contender == "ours"]
    assert all(each is not None and each.low < 1 < each.high for each in beside)


def test_the_same_files_give_the_same_answer(tmp_path: Path) -> None:
    chooser = random.Random("again")
    runs = [run_of(tmp_path / f"{n}.json", samples(chooser)) for n in range(2)]
    assert compare(*runs).rows == compare(*runs).rows
    assert judge(runs[0].places) == judge(runs[0].places)


def test_of_too_few_rounds_nothing_is_claimed_and_of_zeros_no_ratio_is_made(tmp_path: Path) -> None:
    chooser = random.Random("few")
    few = [run_of(tmp_path / f"{n}.json", samples(chooser, rounds=3)) for n in range(2)]
    assert {row.verdict for row in compare(*few).rows} == {TOO_FEW}
    zeros = [run_of(tmp_path / f"{n}.json", samples(chooser, dict.fromkeys(FIGURES, 0.0))) for n in range(2)]
    assert {row.verdict for row in compare(*zeros).rows} == {NO_RATIO}


def test_figures_that_agree_to_the_last_digit_are_not_taken_for_exact(tmp_path: Path) -> None:
    chooser = random.Random("rounded")
    runs = [
        run_of(tmp_path / f"{n}.json", samples(chooser, {"vxlan": 50.0, "ours": figure}, noise=0))
        for n, figure in enumerate((50.0, 49.9))
    ]
    assert {row.verdict for row in compare(*runs).rows} == {SAME}


def test_what_moves_a_whole_round_is_no_noise_of_a_ratio() -> None:
    speed = {number: 1 + number % 3 for number in range(15)}
    draws = draw({"a": speed, "b": {number: 2 * value for number, value in speed.items()}}, "seed")
    differences = [b - a for a, b in zip(draws["a"], draws["b"], strict=True) if a is not None and b is not None]
    found = interval(math.log(2), differences, 30, 1)
    assert found is not None
    assert found.high / found.low < 1.02


def test_a_single_run_says_whether_ours_is_beyond_the_noise(tmp_path: Path) -> None:
    chooser = random.Random("single")
    run = run_of(tmp_path / "run.json", samples(chooser, {"vxlan": 8.0, "naive": 1.5, "ours": 8.0}, rounds=15))
    rows = {(row.metric.name, row.contender): row for row in judge(run.places)}
    assert rows["tcp1_gbit_s", "vxlan"].verdict == SAME
    assert rows["tcp1_gbit_s", "naive"].verdict == BETTER
    assert rows["rtt_p50_us", "naive"].verdict == WORSE
    assert (rows["tcp1_gbit_s", "ours"].ratio, rows["tcp1_gbit_s", "ours"].verdict) == (None, "-")


def test_another_machine_is_refused_unless_it_is_meant(tmp_path: Path) -> None:
    chooser = random.Random("machines")
    old = run_of(tmp_path / "old.json", samples(chooser))
    new = run_of(
        tmp_path / "new.json", samples(chooser), machine={**bench_runs.MACHINE, "cpu": "Other CPU", "python": "3.12"}
    )
    with pytest.raises(UsageError, match=r"two machines .cpu Some CPU → Other CPU.*--anyway"):
        compare(old, new)
    remarks = compare(old, new, any_machine=True).remarks
    assert remarks[0].startswith("two machines, cpu Some CPU → Other CPU")
    assert remarks[1] == "other programs: python 3.11.7 → 3.12"


def test_other_options_are_refused_but_for_the_rounds_and_the_file(tmp_path: Path) -> None:
    chooser = random.Random("options")
    old = run_of(tmp_path / "old.json", samples(chooser))
    more = run_of(
        tmp_path / "more.json", samples(chooser, rounds=9), options={**bench_runs.OPTIONS, "rounds": 9, "json": "x"}
    )
    assert compare(old, more).rows
    other = run_of(tmp_path / "other.json", samples(chooser), options={**bench_runs.OPTIONS, "seconds": 5})
    with pytest.raises(UsageError, match=r"with other options .seconds 2 → 5"):
        compare(old, other)


def test_a_contender_of_one_run_only_is_named_and_nothing_in_common_is_refused(tmp_path: Path) -> None:
    chooser = random.Random("contenders")
    old = run_of(tmp_path / "old.json", samples(chooser))
    new = run_of(tmp_path / "new.json", samples(chooser, {"vxlan": 10.0, "ours": 8.0}))
    assert compare(old, new).remarks == (f"only in {old.path}: bare, naive",)
    alone = run_of(tmp_path / "alone.json", samples(chooser, {"ours-w2": 8.0}))
    with pytest.raises(UsageError, match="no contender and figure in common"):
        compare(old, alone)
