from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.forward import main, parse_arguments
from bench.more_contenders import variants
from bench.report import chart, table
from flannel_udp.bench.contenders import CONTENDERS
from flannel_udp.bench.latency import histogram, percentile
from flannel_udp.bench.measure import default_congestion_control, measure_of
from flannel_udp.bench.measuring import Run
from flannel_udp.bench.names import ALL
from flannel_udp.bench.results import document, place_record, read_result
from flannel_udp.bench.samples import Sample, medians, n_rejected, ratios
from flannel_udp.bench.time_left import TimeLeft
from flannel_udp.options import Offload


def sample(
    contender: str, value: float, *, accepted: bool = True, metric: str = "tcp1_gbit_s", number: int = 1
) -> Sample:
    return Sample(number, contender, "tcp1", foreign=0.0, accepted=accepted, values={metric: value})


SAMPLES = [
    *(sample("vxlan", value, number=number) for number, value in enumerate((4.0, 9.0, 5.0), 1)),
    *(sample("naive", value, number=number) for number, value in enumerate((0.5, 0.7), 1)),
    sample("ours", 6.0),
    sample("ours", 100.0, accepted=False, number=2),
]


def test_medians_are_of_the_accepted_samples_only() -> None:
    assert medians(SAMPLES) == {"tcp1_gbit_s": {"vxlan": 5.0, "naive": pytest.approx(0.6), "ours": 6.0}}
    assert n_rejected(SAMPLES) == 1


def test_ratios_are_ours_to_each_baseline() -> None:
    assert ratios(medians(SAMPLES)) == {
        "tcp1_gbit_s": {"bare": None, "vxlan": pytest.approx(1.2), "naive": pytest.approx(10.0)}
    }


def test_there_is_no_ratio_to_a_baseline_that_is_zero_or_missing_and_none_without_ours() -> None:
    cpu = [sample("vxlan", 0.0, metric="cpu"), sample("ours", 3.0, metric="cpu"), sample("naive", 1.0, metric="rtt")]
    assert ratios(medians(cpu)) == {name: {"bare": None, "vxlan": None, "naive": None} for name in ("cpu", "rtt")}


def rows_of(samples: list[Sample]) -> list[str]:
    lines = table(samples, {}, "title").splitlines()
    return [" ".join(line.split()) for line in lines if line.startswith(("vxlan", "ours"))]


def test_a_contender_whose_samples_were_all_rejected_shows_as_a_dash() -> None:
    rows = rows_of([sample("vxlan", 4.0), sample("ours", 9.9, accepted=False)])
    assert rows == ["vxlan 4 1 - - too few samples", "ours - 0 - - -"]


def test_a_median_says_of_how_many_samples_it_is() -> None:
    first = [sample("vxlan", 4.0), sample("ours", 6.0)]
    second = [sample("vxlan", 4.0, number=2), sample("ours", 9.0, number=2, accepted=False)]
    rows = rows_of(first + second)
    assert rows == ["vxlan 4 ±0.0 % 2 - - too few samples", "ours 6 1 - - -"]


def test_the_document_is_json_and_holds_every_sample_with_the_rejected_ones_marked() -> None:
    made = json.loads(json.dumps(document({"cores": 2}, {"rounds": 1}, place_record({"ours": 1472}, SAMPLES))))
    assert len(made["samples"]) == len(SAMPLES)
    assert [entry["accepted"] for entry in made["samples"]].count(False) == made["rejected"] == 1
    assert made["ratios"]["tcp1_gbit_s"]["vxlan"] == pytest.approx(1.2)
    assert (made["machine"], made["options"], made["mtus"]) == ({"cores": 2}, {"rounds": 1}, {"ours": 1472})


def test_percentiles_of_a_hundred_values() -> None:
    of = histogram(float(n) for n in range(100, 0, -1))
    assert [percentile(of, percent) for percent in (0, 1, 50, 99, 100)] == [1, 1, 50, 99, 100]


@given(values=st.lists(st.integers(1, 10**6), min_size=1), percent=st.floats(0, 100))
def test_a_percentile_is_a_value_that_enough_values_do_not_exceed(values: list[int], percent: float) -> None:
    found = percentile(histogram(values), percent)
    assert found in values
    assert sum(value <= found for value in values) >= len(values) * percent / 100


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--rounds", "0"], "--rounds from 1 to 100"),
        (["--seconds", "61"], "--seconds from 1 to 60"),
        (["--underlay", "fibre"], "invalid choice: 'fibre'"),
        (["--measures", "tcp1,speed"], "'speed' is not one of tcpN"),
        (["--workers", "1,0"], "'1,0' is no list of numbers from 1 to 64"),
        (["--workers", "two"], "'two' is no list of numbers"),
        (["--targets", "--underlay", "whole"], "--targets says by itself"),
        (["--targets", "--rungs"], "--targets says by itself"),
        (["--targets", "--cni"], "--targets says by itself"),
        (["--targets", "--backends"], "--targets says by itself"),
        (["--targets", "speed"], "invalid choice: 'speed'"),
        (["--json", "forward.svg"], "another suffix"),
    ],
)
def test_a_wrong_argument_ends_with_one_line_and_code_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_arguments(argv)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_quick_is_one_round_of_one_second() -> None:
    assert (parse_arguments(["--quick"]).rounds, parse_arguments(["--quick"]).seconds) == (1, 1)


def test_measures_are_taken_in_their_order_whatever_order_they_are_asked_for_in() -> None:
    assert parse_arguments(["--measures", "rtt,tcp1"]).measures == ("tcp1", "rtt")
    assert parse_arguments(["--measures", "all"]).measures == ALL


def test_a_default_run_takes_at_most_five_minutes() -> None:
    settings = parse_arguments([])
    round_s = sum(measure_of(name).nominal_s(settings.seconds) for name in settings.measures)
    assert settings.rounds * round_s * len(CONTENDERS) <= 300


def test_the_default_congestion_control_is_the_machines_and_is_named() -> None:
    assert parse_arguments([]).load.congestion_control == "cubic"
    settings = parse_arguments(["--congestion-control", "default"])
    assert settings.load.congestion_control == ""
    assert settings.spoken_congestion_control == f"{default_congestion_control()} (the machine's default)"


def test_the_rungs_are_removed_one_by_one_and_all_together() -> None:
    names = list(variants((1, 2), rungs=True))
    assert names[:2] == ["ours-w1", "ours-w2"]
    assert set(names[2:]) == {f"ours-no-{rung}" for rung in Offload().names()} | {"ours-off"}


def test_the_plugins_pods_are_masqueraded_by_the_agent_or_by_the_bridge() -> None:
    assert list(variants(cni=True)) == ["ours-masq", "ours-cni", "ours-cni-masq"]


def test_the_chart_says_how_many_times_better_ours_is_also_where_less_is_better() -> None:
    rtt = [sample("naive", 80.0, metric="rtt_p50_us"), sample("ours", 40.0, metric="rtt_p50_us")]
    tcp = [sample("vxlan", 4.0), sample("ours", 3.0)]
    rows = chart([*rtt, *tcp], "title").rows
    assert rows == {"TCP, 1 stream, Gbit/s": {"to vxlan": 0.75}, "ping p50, µs": {"to naive": 2.0}}


def test_without_root_nothing_is_started(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(Run, "in_labs", lambda *_: pytest.fail("started"))
    assert main(["--quick"]) == 1
    assert "root" in caplog.text


@pytest.mark.skipif(os.geteuid() != 0, reason="root is asked for first")
def test_a_json_file_that_cannot_be_written_is_refused_before_the_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Run, "in_labs", lambda *_: pytest.fail("started"))
    monkeypatch.setattr("bench.forward.shutil.which", lambda tool: tool)
    assert main(["--quick", "--json", "/nonexistent/forward.json"]) == 2
    assert "/nonexistent/forward.json" in caplog.text


def test_the_time_left_is_told_by_the_pace_so_far() -> None:
    now = [0.0]
    left = TimeLeft(100.0, lambda: now[0])
    assert str(left) == "about 100 s"
    now[0] = 20.0
    left.passed(10.0)  # it took twice as long as it should have
    assert str(left) == "about 3 min"
    left.passed(90.0)
    assert str(left) == "about 0 s"


def measured(run: Run, *_: object) -> None:
    """Stand for a run: one sample, and then Ctrl-C."""
    run.taken.samples.append(sample("ours", 8.0))
    raise KeyboardInterrupt


@pytest.mark.skipif(os.geteuid() != 0, reason="root is asked for first")
@pytest.mark.parametrize("targets", [[], ["--targets", "ipv6"]])
def test_a_file_that_cannot_be_written_after_the_run_costs_no_table(
    targets: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Run, "in_labs", measured)
    monkeypatch.setattr("bench.forward.shutil.which", lambda tool: tool)
    (tmp_path / "run.json").mkdir()
    assert main(["--quick", *targets, "--json", str(tmp_path / "run.json")]) == 1
    assert f"cannot write {tmp_path}/run.json: Is a directory" in caplog.text
    shown = capsys.readouterr().out
    assert ("ours divided by the other's" if targets else "TCP, 1 stream, Gbit/s (more is better)") in shown


@pytest.mark.skipif(os.geteuid() != 0, reason="root is asked for first")
def test_a_reader_of_the_table_who_has_gone_costs_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> str:
        raise BrokenPipeError

    monkeypatch.setattr(Run, "in_labs", measured)
    monkeypatch.setattr("bench.forward.shutil.which", lambda tool: tool)
    monkeypatch.setattr("bench.forward.report.table", gone)
    with pytest.raises(BrokenPipeError):
        main(["--quick", "--json", str(tmp_path / "run.json")])
    assert len(read_result(tmp_path / "run.json").places[0].samples) == 1
