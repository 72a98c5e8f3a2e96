"""The HTML report of a run: it stands alone, it is well made, and it can be read."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from flannel_udp.bench.drawing import linear_ticks, log_ticks
from flannel_udp.bench.metrics import metrics_of
from flannel_udp.bench.page import page
from flannel_udp.bench.page_style import STYLE
from flannel_udp.bench.plots import spread_plot
from flannel_udp.bench.results import read_result
from flannel_udp.cli.main import main
from tests.support.bench_runs import run_document, run_of, samples, write_run

TARGETS = Path(__file__).parents[2] / "docs" / "targets.json"
(TCP1,) = metrics_of(["tcp1_gbit_s"])
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Outline(HTMLParser):
    """What a page is made of: elements with their attributes; those that were not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.crossed: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.crossed.append(tag)

    def named(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag in tags]


@pytest.fixture(scope="module")
def text() -> str:
    return page(read_result(TARGETS))


@pytest.fixture(scope="module")
def outline(text: str) -> Outline:
    return Outline(text)


def test_the_report_needs_nothing_from_elsewhere_and_may_load_nothing(text: str, outline: Outline) -> None:
    assert not outline.named("script", "link", "img", "iframe", "object", "base")
    assert not re.search(r"https?://|//\w+\.|@import|url\(|\bon\w+=", text.replace("http-equiv", ""))
    (policy,) = (meta["content"] for meta in outline.named("meta") if "http-equiv" in meta)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    assert all((link["href"] or "").startswith("#") for link in outline.named("a"))


def test_every_element_is_closed_every_id_is_one_alone_and_every_reference_leads_to_one(outline: Outline) -> None:
    assert (outline.open, outline.crossed) == ([], [])
    ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    labels = [name for each in outline.named("svg") for name in (each["aria-labelledby"] or "").split()]
    links = [(link["href"] or "")[1:] for link in outline.named("a")]
    assert set(labels) | set(links) <= set(ids)


def test_who_has_a_keyboard_or_a_reader_only_can_use_it(text: str, outline: Outline) -> None:
    assert outline.named("html")[0]["lang"] == "en"
    assert outline.named("a")[0] == {"class": "skip", "href": "#results"}
    assert len(outline.named("h1")) == len(outline.named("main")) == 1
    levels = [int(tag[1]) for tag, _ in outline.elements if re.fullmatch("h[1-6]", tag)]
    assert all(level <= before + 1 for before, level in itertools.pairwise(levels))
    assert len(outline.named("caption")) == len(outline.named("table")) > 0
    assert all("scope" in cell for cell in outline.named("th"))
    assert all(plot["role"] == "img" for plot in outline.named("svg"))
    assert text.count("<title id=") == text.count("<desc id=") == len(outline.named("svg"))


def test_machine_command_and_commit_stand_at_the_top(text: str) -> None:
    top = text[: text.index("<main")]
    for said in ("Intel(R) Xeon(R) Processor, 2 cores", "commit d7bf10c1e34e", "Linux 6.18", "--targets udp"):
        assert said in top


def test_promises_that_are_not_met_are_bold(text: str) -> None:
    targets = json.loads(TARGETS.read_text())["targets"]
    assert text.count('<strong class="bad">not met</strong>') == sum(not target["met"] for target in targets)


def test_every_plot_is_xml_with_units_at_its_axis_and_a_legend(text: str) -> None:
    plots = [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text)]  # noqa: S314 - it is our own
    assert len(plots) > 30
    for plot in plots:
        said = [element.text or "" for element in plot.iter("text")]
        assert {"quartiles", "one sample"} <= set(said) or {"ours is better", "95 % interval"} <= set(said)
        assert any(re.search(r"(Gbit/s|kpps|µs|s per GB|stronger)$|logarithmic", each) for each in said)
        _, _, width, height = map(float, plot.attrib["viewBox"].split())
        inside = [(float(each.attrib["x"]), float(each.attrib["y"])) for each in plot.iter("text")]
        assert all(0 <= x <= width and 0 <= y <= height for x, y in inside)


def test_every_accepted_sample_is_a_dot_and_bars_are_as_long_as_their_medians() -> None:
    found = {"vxlan": {1: 4.0, 2: 8.0, 3: 6.0}, "ours": {1: 3.0}, "naive": {}}
    plot = ET.fromstring(spread_plot(TCP1, found, "key"))  # noqa: S314 - it is our own
    dots = [dot for dot in plot.iter("circle") if float(dot.attrib["cy"]) > 6 and dot.attrib["cx"] != "9"]
    bars = [float(bar.attrib["width"]) for bar in plot.iter("rect") if bar.attrib["height"] == "16"]
    assert len(dots) == 4
    assert bars[0] == pytest.approx(2 * bars[1], abs=0.2)
    assert "every sample was rejected" in [element.text for element in plot.iter("text")]


@pytest.mark.parametrize("largest", [0.0, 0.0012, 0.93, 1.0, 7.39, 10.0, 619.0, 26_800.0])
def test_ticks_are_round_few_and_reach_beyond_the_largest_value(largest: float) -> None:
    ticks = linear_ticks(largest)
    assert ticks[0] == 0
    assert ticks[-1] >= largest * 0.999
    assert 2 <= len(ticks) <= 7
    assert all(len(f"{tick:,g}") <= 7 for tick in ticks)


@pytest.mark.parametrize(("low", "high"), [(0.5, 2.0), (0.08, 1.3), (0.9, 480.0), (1e-4, 1e4)])
def test_ticks_of_ratios_have_1_between_them(low: float, high: float) -> None:
    ticks = log_ticks(low, high)
    assert ticks[0] <= low < high <= ticks[-1]
    assert 1 in ticks
    assert len(ticks) <= 9


def test_names_from_a_file_are_text_and_no_elements(tmp_path: Path) -> None:
    odd = "<script>alert(1)</script>"
    run = run_of(tmp_path / "run.json", samples(random.Random("odd"), {odd: 1.0, "ours": 2.0}), machine={"cpu": odd})
    written = Outline(page(run))
    assert not written.named("script")
    assert (written.open, written.crossed) == ([], [])


def test_the_same_file_gives_the_same_report(text: str) -> None:
    assert page(read_result(TARGETS)) == text


def luminance(colour: str) -> float:
    """Return the relative luminance of #rrggbb (WCAG 2.2)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def schemes() -> Iterator[dict[str, str]]:
    """Yield the colours of the light page and of the dark one."""
    for block in re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL):
        yield dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block))


@pytest.mark.parametrize("colours", list(schemes()), ids=("light", "dark"))
def test_text_stands_out_from_what_is_behind_it(colours: dict[str, str]) -> None:
    for ink in ("ink", "faint", "link", "better", "worse"):
        for behind in ("paper", "band"):
            light, dark = sorted((luminance(colours[ink]), luminance(colours[behind])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, behind)


def test_the_command_writes_it_where_it_is_told_and_beside_the_result_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run.json", samples(random.Random("report")))
    for argv, output in (([], "run.html"), (["-o", str(tmp_path / "other.html")], "other.html")):
        assert main(["bench", "report", str(run), *argv]) == 0
        assert capsys.readouterr().out == f"wrote {tmp_path / output}\n"
        assert (tmp_path / output).read_text() == page(read_result(run))
    assert main(["bench", "report", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"written": [str(tmp_path / "run.html")]}


def test_what_cannot_be_written_is_one_line_and_costs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run.json", samples(random.Random("report")))
    before = run.read_bytes()
    for output, code, said in (
        ("/dev/full", 1, "cannot write /dev/full: No space left on device"),
        (tmp_path / "missing" / "report.html", 1, f"cannot write {tmp_path}/missing/report.html: No such file"),
        (tmp_path, 1, f"cannot write {tmp_path}: Is a directory"),
        (run, 2, "is the result itself: name another file"),
    ):
        assert main(["bench", "report", str(run), "-o", str(output)]) == code
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert said in err
    assert run.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.json"]


def test_a_result_that_is_none_leaves_the_former_report_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, report = tmp_path / "run.json", tmp_path / "run.html"
    broken.write_text(json.dumps(run_document([])))
    report.write_text("former")
    assert main(["bench", "report", str(broken)]) == 2
    assert "holds no sample" in capsys.readouterr().err
    assert report.read_text() == "former"
