from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from bench import targets
from bench.contenders import CARDS, CONTENDERS
from bench.lookup import Found, judged
from bench.measure import MEASURES
from bench.report import METRICS
from bench.targets import LOOKUP, TARGETS, Target, Verdict, judge, needed, records, table, underlays

MORE = Target("speed", "wire", "tcp1", "tcp1_gbit_s", "vxlan", 1.0, 1.3)
LESS = Target("time", "wire", "rtt", "rtt_p50_us", "naive", 0.5, 0.1, higher_is_better=False)


@pytest.mark.parametrize(
    ("target", "figure", "words"),
    [
        (MORE, 0.999999, "NOT met"),
        (MORE, 1.0, "met"),
        (MORE, 1.3, "met, and the aim"),
        (LESS, 0.500001, "NOT met"),
        (LESS, 0.5, "met"),
        (LESS, 0.1, "met, and the aim"),
        (MORE, None, "not measured"),
    ],
)
def test_a_target_is_met_at_its_bound_and_not_a_hair_before(target: Target, figure: float | None, words: str) -> None:
    assert Verdict(target, figure).words == words


def test_what_was_not_measured_is_not_met() -> None:
    (record,) = records([Verdict(MORE, None)])
    assert (record["figure"], record["met"]) == (None, False)


@pytest.mark.parametrize("target", [target for target in TARGETS if target.underlay != LOOKUP])
def test_every_target_names_what_exists_and_its_measure_is_planned(target: Target) -> None:
    assert target.underlay in CARDS
    assert target.measure in MEASURES
    assert target.baseline in CONTENDERS
    assert target.metric in {metric.name for metric in METRICS}
    assert {target.baseline, "ours"} <= set(needed(target.underlay)[target.measure])


def test_no_measure_is_planned_that_no_target_needs() -> None:
    planned = {(underlay, measure) for underlay in underlays() for measure in needed(underlay)}
    assert planned == {(target.underlay, target.measure) for target in TARGETS if target.underlay != LOOKUP}


def test_every_aim_is_harder_than_its_bound() -> None:
    assert [target for target in TARGETS if not target.met(target.aim)] == []


def test_each_figure_is_that_of_its_own_underlay_and_baseline() -> None:
    ratios = {
        "wire": {"tcp1_gbit_s": {"vxlan": 1.5, "naive": 99.0}},
        "whole": {"tcp1_gbit_s": {"vxlan": 0.7, "naive": 14.0}},
    }
    verdicts = judge(ratios, {"ratio": 1.5, "bytes_per_route": 40.0})
    found = {(v.target.underlay, v.target.metric, v.target.baseline): v.words for v in verdicts if v.figure is not None}
    assert found == {
        ("wire", "tcp1_gbit_s", "vxlan"): "met, and the aim",
        ("whole", "tcp1_gbit_s", "vxlan"): "NOT met",
        ("whole", "tcp1_gbit_s", "naive"): "met",
        (LOOKUP, "ratio", LOOKUP): "met",
        (LOOKUP, "bytes_per_route", LOOKUP): "met, and the aim",
    }
    assert json.loads(json.dumps(records(verdicts)))[0]["met"] is True


def test_the_table_has_a_row_for_every_target() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table(judge({}, {}), "title"))
    assert console.export_text().count("not measured") == len(targets.TARGETS)


def test_lookup_is_judged_by_the_slowest_growth_and_the_worst_memory() -> None:
    found = [Found(10, 4.0, 2000), Found(1000, 9.0, 90_000), Found(100_000, 6.0, 3_000_000)]
    assert judged(found) == {"ratio": 1.5, "bytes_per_route": 200.0}
