from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from bench.chart import Chart, svg, write
from flannel_udp.errors import FlannelError

SVG = "{http://www.w3.org/2000/svg}"
COLOURED = "#"


def bars(chart: Chart) -> list[tuple[float, float]]:
    """Left edge and width of the bars, legend and background left out."""
    root = ET.fromstring(svg([chart]))  # noqa: S314 - it is our own
    rects = [rect.attrib for rect in root.iter(f"{SVG}rect") if rect.attrib["fill"].startswith(COLOURED)]
    return [(float(rect["x"]), float(rect["width"])) for rect in rects[len(chart.series) :]]


def test_bars_are_as_long_as_their_values() -> None:
    (x1, one), (x2, four) = bars(Chart("time", {"a": {"ns": 10.0}, "b": {"ns": 40.0}}))
    assert x1 == x2
    assert four == pytest.approx(4 * one, rel=0.01)


def test_on_a_logarithmic_chart_half_is_as_far_left_of_one_as_double_is_right() -> None:
    (left, half), (right, double) = bars(Chart("ratio", {"a": {"r": 0.5}, "b": {"r": 2.0}}, logarithmic=True))
    assert left + half == pytest.approx(right, abs=0.2)
    assert half == pytest.approx(double, abs=0.2)


def test_a_chart_of_values_above_one_only_begins_at_one() -> None:
    (_, square), (_, once) = bars(Chart("ratio", {"a": {"r": 9.0, "s": 3.0}}, logarithmic=True))
    assert square == pytest.approx(2 * once, rel=0.01)


def test_charts_stand_below_each_other_and_text_is_escaped() -> None:
    first, second = Chart("a < b & c", {"x": {"s": 1.0}}), Chart("second", {"y": {"s": 1.0}})
    root = ET.fromstring(svg([first, second]))  # noqa: S314 - it is our own
    tops = {text.text: float(text.attrib["y"]) for text in root.iter(f"{SVG}text")}
    assert tops["a < b & c"] < first.height < tops["second"] < first.height + second.height


def test_a_chart_without_rows_is_still_a_picture() -> None:
    ET.fromstring(svg([Chart("nothing", {}), Chart("nothing", {}, logarithmic=True)]))  # noqa: S314 - it is our own


def test_the_plot_lies_next_to_the_figures(tmp_path: Path) -> None:
    write(tmp_path / "run.json", {"cores": 2}, [Chart("t", {"x": {"s": 1.0}})])
    assert json.loads((tmp_path / "run.json").read_text()) == {"cores": 2}
    assert (tmp_path / "run.svg").read_text().startswith("<svg")


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FlannelError, match=r"cannot write .*missing/run"):
        write(tmp_path / "missing" / "run.json", {}, [])
