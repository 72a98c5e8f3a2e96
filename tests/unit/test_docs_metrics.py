"""docs/metrics.md names every metric, every reason to drop a packet, with its levels in the log, and every place."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from flannel_udp.dataplane.drops import DROP_REASONS, about
from flannel_udp.model import DEGRADATIONS, KERNEL_DROPS
from flannel_udp.registry.observed import REQUESTS
from tests.support.exported import exported

TEXT = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
LETTERS = {"D": logging.DEBUG, "I": logging.INFO, "W": logging.WARNING}


def test_every_reason_is_there_with_its_levels() -> None:
    found = {}
    for line in TEXT.splitlines():
        if row := re.fullmatch(r"\| (`.*`) \| .* \| ([DIW]) \| ([DIW]) \|", line):
            for reason in re.findall(r"`(\w+)`", row[1]):
                found[reason] = (LETTERS[row[2]], LETTERS[row[3]])
    assert found == {reason: about(reason)[1][:2] for reason in DROP_REASONS}


def test_every_place_where_the_kernel_drops_is_there() -> None:
    assert all(f"`{place}`" in TEXT for place in KERNEL_DROPS)


async def test_every_metric_is_there_with_its_labels_and_its_type_and_no_other() -> None:
    found = {}
    for line in TEXT.splitlines():
        if row := re.fullmatch(r"\| `(flannel_udp_\w+)` \| (.*?) ?\| (\w+) \| .* \|", line):
            found[row[1]] = (row[3], frozenset(re.findall(r"`(\w+)`", row[2])))
    assert found == {name: (metric.type, metric.labels) for name, metric in (await exported()).items()}


@pytest.mark.parametrize(
    ("name", "values"),
    [("flannel_udp_degraded", DEGRADATIONS), ("flannel_udp_registry_request_duration_seconds", REQUESTS)],
)
def test_every_value_of_a_label_is_named(name: str, values: Sequence[str]) -> None:
    (row,) = [line for line in TEXT.splitlines() if line.startswith(f"| `{name}`")]
    assert [value for value in values if f"`{value}`" not in row] == []
