"""How long pings took: kept whole, read back with doubt, drawn."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from flannel_udp.bench.latency import histogram, merged, percentile
from flannel_udp.bench.latency_plot import latency_plot
from flannel_udp.bench.page import page
from flannel_udp.bench.results import read_result
from flannel_udp.bench.samples import Sample, round_trips
from flannel_udp.errors import UnusableFile
from tests.support.bench_runs import run_document, run_of

TIMES = {40: 990, 80: 9, 12_000: 1}


def ping(contender: str, times_us: dict[int, int], number: int = 1, *, accepted: bool = True) -> Sample:
    return Sample(number, contender, "rtt", 0.0, accepted, {"rtt_p50_us": 40.0}, times_us)


def test_every_ping_is_counted_and_percentiles_are_those_of_all_of_them() -> None:
    times_us = [time_us for time_us, n in TIMES.items() for _ in range(n)]
    assert histogram(times_us) == TIMES
    assert [percentile(TIMES, percent) for percent in (50, 99, 99.9, 100)] == [40, 40, 80, 12_000]
    assert histogram([0.2, 54.4, 54.0]) == {1: 1, 54: 2}


def test_the_pings_of_all_accepted_samples_are_one_histogram_a_contender() -> None:
    samples = [ping("ours", TIMES), ping("ours", {40: 10, 50: 1}, 2), ping("ours", {7: 1}, 3, accepted=False)]
    assert round_trips([*samples, ping("bare", {9: 5})]) == {
        "rtt": {"ours": {40: 1000, 50: 1, 80: 9, 12_000: 1}, "bare": {9: 5}}
    }
    assert merged([]) == {}


def test_pings_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    (place,) = run_of(tmp_path / "run.json", [ping("ours", TIMES), Sample(1, "ours", "tcp1", 0.0, True, {})]).places
    assert [sample.times_us for sample in place.samples] == [TIMES, {}]


@pytest.mark.parametrize("times", [{"x": 1}, {"-5": 1}, {"0": 1}, {"5": 0}, {"5": 1.5}, {"5": "1"}, {"9" * 10: 1}, [5]])
def test_what_is_no_round_trip_is_refused(times: Any, tmp_path: Path) -> None:
    document = run_document([ping("ours", TIMES)])
    document["samples"][0]["times_us"] = times
    (tmp_path / "run.json").write_text(json.dumps(document))
    with pytest.raises(UnusableFile, match=r"round trip|times_us"):
        read_result(tmp_path / "run.json")


def test_the_plot_has_a_bar_for_each_share_marks_at_the_percentiles_and_tells_both(tmp_path: Path) -> None:
    plot = ET.fromstring(latency_plot("How long", {"bare": {9: 1000}, "ours": TIMES}, "key"))  # noqa: S314 - our own
    bars = [bar for bar in plot.iter("rect") if bar.attrib["height"] != "12"]
    heights = [float(bar.attrib["height"]) for bar in bars]
    assert len(heights) == 1 + len(TIMES)
    assert heights[0] > heights[1] > heights[2] > heights[3] > 1
    (told,) = (each.text or "" for each in plot.iter("desc"))
    assert "ours: 1,000 pings, p50 40 µs, p99 40 µs, p99.9 80 µs, longest 12,000 µs" in told
    said = {each.text for each in plot.iter("text")}
    assert {"bare", "ours", "another", "p50", "p99", "p99.9", "100 %", "1 %", "0.01 %"} <= said
    assert "round trip, µs (logarithmic); height: share of the pings (logarithmic)" in said


def test_the_report_has_the_plot_where_pings_were_kept(tmp_path: Path) -> None:
    told = "How long pings took"
    with_them = page(run_of(tmp_path / "run.json", [ping("ours", TIMES)]))
    assert re.search(rf"<h3>{told}</h3><figure><svg", with_them)
    assert told not in page(run_of(tmp_path / "old.json", [ping("ours", {})]))
