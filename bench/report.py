"""What bench.forward shows: its table as text, and the bars beside the JSON file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.chart import Chart
from flannel_udp.bench.judging import judge
from flannel_udp.bench.metrics import OURS
from flannel_udp.bench.results import Place
from flannel_udp.bench.samples import Sample, medians, ratios, taken
from flannel_udp.bench.sheets import run_sheets
from flannel_udp.bench.writing import text


def chart(samples: Sequence[Sample], title: str) -> Chart:
    """Return bars that say how many times better ours is than each baseline: above 1 is better, times and CPU too."""
    against = ratios(medians(samples))
    rows: dict[str, dict[str, float]] = {}
    for metric in taken(samples):
        for baseline, ratio in against.get(metric.name, {}).items():
            if ratio:
                better = ratio if metric.higher_is_better else 1 / ratio
                rows.setdefault(metric.label, {})[f"to {baseline}"] = better
    return Chart(f"{OURS}, times better: {title}", rows, logarithmic=True)


def table(samples: Sequence[Sample], mtus: Mapping[str, int], title: str) -> str:
    """Return the medians and the ratios of ours to them, as `flannel-udp bench show` has them."""
    return "".join(f"{text(sheet)}\n" for sheet in run_sheets(judge([Place(title, mtus, tuple(samples))])))
