"""Runs of bench.forward as files, made up: known medians with a known noise."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flannel_udp.bench.results import Result, document, place_record, read_result
from flannel_udp.bench.samples import Sample

MACHINE = {
    "cpu": "Some CPU",
    "cores": 2,
    "architecture": "x86_64",
    "kernel": "6.18",
    "python": "3.11.7",
    "commit": "abc",
}
OPTIONS = {"underlay": "wire", "between": "pods", "family": 4, "rounds": 5, "seconds": 2, "measures": ["tcp1"]}
FIGURES = {"bare": 20.0, "vxlan": 10.0, "naive": 1.5, "ours": 8.0}
METRICS = ("tcp1_gbit_s", "tcp4_gbit_s", "udp64_kpps", "rtt_p50_us", "rtt_p99_us", "tcp1_machine_cpu_s_per_gb")


def samples(
    chooser: random.Random,
    figures: Mapping[str, float] = FIGURES,
    *,
    rounds: int = 5,
    noise: float = 0.03,
    metrics: Sequence[str] = METRICS,
) -> list[Sample]:
    """Return a run's samples: each figure times a factor that is normal around 1."""
    return [
        Sample(number, who, "tcp1", 0.01, True, {name: figure * chooser.gauss(1, noise) for name in metrics})
        for number in range(1, rounds + 1)
        for who, figure in figures.items()
    ]


def run_document(of: Sequence[Sample], **other: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the JSON file of a run holds; `machine` and `options` may say something else."""
    machine, options = (other.get("machine", MACHINE), other.get("options", OPTIONS))
    return document(machine, options, place_record({"bare": 1500, "ours": 1472}, of))


def write_run(path: Path, of: Sequence[Sample], **other: Mapping[str, Any]) -> Path:
    """Write that file."""
    path.write_text(json.dumps(run_document(of, **other)))
    return path


def run_of(path: Path, of: Sequence[Sample], **other: Mapping[str, Any]) -> Result:
    """Write it, and read it back."""
    return read_result(write_run(path, of, **other))
