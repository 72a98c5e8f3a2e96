from __future__ import annotations

import json

import pytest

from bench import lookup
from bench.lookup import Found, judged
from bench.more_contenders import BACKENDS, IPV6
from bench.targets import (
    BACKEND_TARGETS,
    FAR,
    GROUPS,
    IPV6_TARGETS,
    LOOKUP,
    TARGETS,
    Target,
    Verdict,
    elsewhere,
    judge,
    needed,
    places,
    records,
    table,
)
from flannel_udp.bench.contenders import BETWEEN, CARDS, CONTENDERS, HOSTS, PODS, Where
from flannel_udp.bench.metrics import OURS, metrics_of
from flannel_udp.bench.names import parse_measures
from flannel_udp.bench.samples import Sample

MORE = Target("speed", "wire", PODS, "tcp1", "tcp1_gbit_s", "vxlan", 1.0, 1.3)
ALL = GROUPS["all"]
LOOKED_UP = {"ratio": 1.5, "ratio_of_ipv6": 2.0, "bytes_per_route": 40.0, "bytes_per_route_of_ipv6": 200.1}
LESS = Target("time", "wire", HOSTS, "rtt", "rtt_p50_us", "naive", 0.5, 0.1, higher_is_better=False)


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


@pytest.mark.parametrize("target", [target for target in ALL if target.underlay not in (LOOKUP, FAR)])
def test_every_target_names_what_exists_and_its_measure_is_planned(target: Target) -> None:
    assert target.underlay in CARDS
    assert parse_measures(target.measure) == (target.measure,)
    assert target.between in BETWEEN
    assert target.baseline in ("", *CONTENDERS, *BACKENDS, *IPV6)
    assert target.contender in (OURS, *BACKENDS, *IPV6)
    assert [metric.name for metric in metrics_of([target.metric])] == [target.metric]
    for place in (target.place, target.beside or target.place):
        assert {target.baseline or target.contender, target.contender} <= set(needed(ALL, place)[target.measure])


@pytest.mark.parametrize("group", GROUPS)
def test_no_measure_is_planned_that_no_target_needs(group: str) -> None:
    judged = GROUPS[group]
    planned = {(place, measure) for place in places(judged) for measure in needed(judged, place)}
    measured = [target for target in judged if target.underlay not in (LOOKUP, FAR)]
    assert planned == {
        (place, target.measure) for target in measured for place in (target.place, target.beside or target.place)
    }


def test_every_aim_is_harder_than_its_bound() -> None:
    assert [target for target in ALL if not target.met(target.aim)] == []


def test_what_the_other_backends_promise_is_measured_in_one_place_and_nothing_else_with_it() -> None:
    assert places(BACKEND_TARGETS) == [Where("wire", PODS)]
    assert elsewhere(BACKEND_TARGETS) == []
    assert set(elsewhere(TARGETS)) == {LOOKUP, FAR}


def test_ipv6_is_measured_in_one_run_with_ipv4() -> None:
    assert places(IPV6_TARGETS) == [Where("wire", PODS)]
    for contenders in needed(IPV6_TARGETS, Where("wire", PODS)).values():
        assert contenders == ["ours", "vxlan-v6", "ours-v6"]


def test_a_target_is_about_the_contender_that_it_names() -> None:
    found = {
        Where("wire", PODS): [
            *samples("tcp1_gbit_s", "ours", 8),
            *samples("tcp1_gbit_s", "ours-vxlan", 4),
            *samples("tcp1_gbit_s", "vxlan", 10, 10),
            *samples("tcp1_gbit_s", "vxlan-to-ours", 7, 8),
        ]
    }
    of = {(v.target.contender, v.target.metric): v for v in judge(BACKEND_TARGETS, found, {})}
    assert (of["ours-vxlan", "tcp1_gbit_s"].figure, of["ours-vxlan", "tcp1_gbit_s"].words) == (0.5, "NOT met")
    assert (of["vxlan-to-ours", "tcp1_gbit_s"].figure, of["vxlan-to-ours", "tcp1_gbit_s"].words) == (0.75, "met")
    assert of["vxlan-to-ours", "tcp1_gbit_s"].quartiles == pytest.approx((0.725, 0.775))
    assert of["ours-ipip", "tcp1_gbit_s"].words == "not measured"


def samples(metric: str, contender: str, *values: float) -> list[Sample]:
    return [
        Sample(number, contender, "any", foreign=0.0, accepted=True, values={metric: value})
        for number, value in enumerate(values, 1)
    ]


def test_each_figure_is_that_of_its_own_place_and_baseline() -> None:
    found = {
        Where("wire", PODS): [
            *samples("tcp1_gbit_s", "vxlan", 8, 10, 10),
            *samples("tcp1_gbit_s", "naive", 1, 1, 1),
            *samples("tcp1_gbit_s", "ours", 8, 9, 11),
            *samples("udp64_weaker_share", "ours", 0.3),
        ],
        Where("wire", HOSTS): [*samples("tcp1_gbit_s", "vxlan", 10), *samples("tcp1_gbit_s", "ours", 7)],
        Where("whole", HOSTS): [*samples("tcp1_gbit_s", "naive", 1), *samples("tcp1_gbit_s", "ours", 14)],
    }
    verdicts = judge(TARGETS, found, {LOOKUP: LOOKED_UP, FAR: {"beside far": 0.9}})
    of = {(v.target.place, v.target.metric): v for v in verdicts if v.figure is not None}
    assert {which: verdict.words for which, verdict in of.items()} == {
        (Where("wire", PODS), "tcp1_gbit_s"): "met",
        (Where("wire", PODS), "udp64_weaker_share"): "NOT met",
        (Where("whole", HOSTS), "tcp1_gbit_s"): "met",
        (Where(FAR, FAR), "beside far"): "met",
        (Where(LOOKUP, LOOKUP), "ratio"): "met",
        (Where(LOOKUP, LOOKUP), "ratio_of_ipv6"): "met",
        (Where(LOOKUP, LOOKUP), "bytes_per_route"): "met, and the aim",
        (Where(LOOKUP, LOOKUP), "bytes_per_route_of_ipv6"): "NOT met",
    }
    pods = of[Where("wire", PODS), "tcp1_gbit_s"]
    assert (pods.figure, pods.quartiles, pods.beside) == (0.9, (0.95, 1.05), 0.7)
    assert json.loads(json.dumps(records(verdicts)))[2]["met"] is True


def test_the_table_has_a_row_for_every_target() -> None:
    shown = table(judge(ALL, {}, {}), "title")
    assert list(shown.columns[-1].cells) == ["not measured"] * len(ALL)


def test_lookup_is_judged_by_the_slowest_growth_and_the_worst_memory_and_ipv6_beside_ipv4() -> None:
    found = [
        *(Found(lookup.IPV4.title, 10, 4.0, 2000), Found(lookup.IPV4.title, 1000, 9.0, 90_000)),
        *(Found(lookup.IPV4.title, 100_000, 6.0, 3_000_000), Found(lookup.IPV6.title, 10, 3.0, 1500)),
        *(Found(lookup.IPV6.title, 100_000, 10.5, 4_000_000), Found(lookup.IPV6_FAR.title, 100_000, 30.0, 16_000_000)),
    ]
    assert judged(found) == {
        "ratio": 1.5,
        "ratio_of_ipv6": 1.75,
        "bytes_per_route": 200.0,
        "bytes_per_route_of_ipv6": 160.0,
    }
