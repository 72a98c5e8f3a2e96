"""examples/alerts.yml and grafana-dashboard.json ask for what agents export, and promtool has nothing to say."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flannel_udp.dataplane.drops import DROP_REASONS, about
from tests.support.exported import Exported, exported, full_page
from tests.support.status import RUNNING

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "examples" / "alerts.yml"
ALERT_TESTS = ROOT / "tests" / "support" / "alerts_test.yml"
DASHBOARD = ROOT / "examples" / "grafana-dashboard.json"
OF_SCRAPING = {"job", "instance"}
"""Labels that Prometheus gives."""

PROMTOOL = shutil.which("promtool")
NEEDS_PROMTOOL = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not installed (Debian: in the package prometheus, which is 100 MB)"
)


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def queries() -> Iterator[tuple[str, str]]:
    """Yield each query and where it stands."""
    for rule in rules():
        yield rule["alert"], rule["expr"]
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for variable in json.loads(DASHBOARD.read_text())["templating"]["list"]:
        if variable["type"] == "query":
            yield f"variable {variable['name']}", variable["query"]["query"]


@pytest.fixture(scope="module")
def metrics() -> dict[str, Exported]:
    """Return the metrics by the names of their series."""
    return {series: metric for metric in asyncio.run(exported()).values() for series in (*metric.samples, metric.name)}


def test_every_query_asks_for_series_and_labels_that_there_are(metrics: dict[str, Exported]) -> None:
    wrong = []
    for where, query in queries():
        for name, matchers in re.findall(r"\b(flannel_udp_\w+)(?:\{([^}]*)\})?", query):
            if name not in metrics:
                wrong.append(f"{where}: {name}")
                continue
            labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers)) - OF_SCRAPING - {"le"}
            wrong += [f"{where}: {name} has no label {label}" for label in labels - metrics[name].labels]
    assert wrong == []


def test_every_label_that_is_shown_or_summed_by_is_one_of_the_series(metrics: dict[str, Exported]) -> None:
    wrong = []
    texts = [(rule["alert"], rule["expr"], str(rule["annotations"])) for rule in rules()]
    texts += [(panel["title"], each["expr"], each["legendFormat"]) for panel in panels() for each in panel["targets"]]
    for where, query, shown in texts:
        known = {label for name in re.findall(r"flannel_udp_\w+", query) for label in metrics[name].labels}
        grouped = ",".join(re.findall(r"\b(?:by|without)\s*\(([^)]*)\)", query))
        named = set(re.findall(r"\w+", grouped)) | set(re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}", shown))
        wrong += [f"{where}: {label}" for label in named - known - OF_SCRAPING - {"le"}]
    assert wrong == []


def test_values_of_labels_in_queries_are_some_that_there_are(metrics: dict[str, Exported]) -> None:
    wrong = []
    for where, query in queries():
        for name, matchers in re.findall(r"\b(flannel_udp_\w+)\{([^}]*)\}", query):
            for label, text in re.findall(r'(\w+)\s*(?:=~|!~|!=|=)"([^"$]*)"', matchers):
                known = {value for known, value in metrics[name].values if known == label}
                if label not in {*OF_SCRAPING, "le", "place"}:
                    wrong += [f"{where}: {label}={value}" for value in text.split("|") if value not in known]
    assert wrong == []


def test_the_alert_for_drops_leaves_out_what_is_no_fault_by_itself() -> None:
    (rule,) = [rule for rule in rules() if rule["alert"] == "FlannelUdpDrops"]
    found = re.search(r'reason!~"([^"]*)"', rule["expr"])
    assert found is not None
    harmless = {reason for reason in DROP_REASONS if max(about(reason)[1][:2]) < logging.WARNING}
    assert set(found[1].split("|")) == harmless


def test_every_alert_says_how_grave_it_is_and_what_to_do() -> None:
    assert [
        rule["alert"] for rule in rules() if rule["labels"]["severity"] not in ("info", "warning", "critical")
    ] == []
    assert all(rule["annotations"].keys() == {"summary", "description"} for rule in rules())


def test_every_alert_has_a_test() -> None:
    tested = set(re.findall(r'alertname="(\w+)"', ALERT_TESTS.read_text()))
    assert tested == {rule["alert"] for rule in rules()}


def test_the_panels_have_numbers_of_their_own_and_do_not_overlap() -> None:
    every = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    cells = [
        (x, y)
        for panel in every
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def promtool(*words: str, given: str = "") -> None:
    assert PROMTOOL is not None
    done = subprocess.run(
        [PROMTOOL, *words], input=given, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "error" not in done.stderr.lower(), done.stderr


@NEEDS_PROMTOOL
async def test_promtool_finds_nothing_wrong_with_the_metrics() -> None:
    for page in (await full_page(), await full_page(RUNNING)):
        promtool("check", "metrics", given=page)


@NEEDS_PROMTOOL
def test_promtool_reads_the_alert_rules() -> None:
    promtool("check", "rules", str(ALERTS))


@NEEDS_PROMTOOL
def test_promtool_reads_the_dashboards_queries(tmp_path: Path) -> None:
    exprs = [target["expr"] for panel in panels() for target in panel["targets"]]
    recorded = [
        {"record": f"dashboard:{number}", "expr": expr.replace("$__rate_interval", "5m")}
        for number, expr in enumerate(exprs)
    ]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}))
    promtool("check", "rules", str(path))


@NEEDS_PROMTOOL
def test_each_alert_comes_when_there_is_what_it_is_for_and_none_otherwise() -> None:
    promtool("test", "rules", str(ALERT_TESTS))
