"""`bench run` as a user has it: from the installed package, in labs, and between two hosts that a lab stands for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flannel_udp.bench.results import read_result
from flannel_udp.lab import netns
from tests.support.labs import NEEDS_NETNS
from tests.support.patience import PATIENCE_S

pytestmark = [
    *NEEDS_NETNS,
    pytest.mark.skipif(not all(map(shutil.which, ("iperf3", "ping"))), reason="the bench needs iperf3 and ping"),
]
PROGRAM = [sys.executable, "-P", "-m", "flannel_udp", "bench"]
SHORT = ["--rounds", "1", "--seconds", "1", "--wait", "0"]


def bench(folder: Path, *words: str) -> tuple[int, str, str]:
    """Run the command in a folder; return its process id and what it wrote to standard output and error."""
    with subprocess.Popen(
        [*PROGRAM, *words], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            shown, said = process.communicate(timeout=2 * PATIENCE_S)
        finally:
            process.terminate()  # it takes its labs down
    assert process.returncode == 0, said
    return process.pid, shown, said


def test_a_run_measures_writes_its_files_and_shows_what_it_found(tmp_path: Path) -> None:
    before = set(netns.names())
    words = ["--contenders", "bare,udp,host-gw", "--measures", "tcp1,rtt", "--offload", "tso,uso"]
    pid, shown, said = bench(tmp_path, "run", *SHORT, *words, "-o", "run.json", "--report", "report.html")
    run = read_result(tmp_path / "run.json")
    (place,) = run.places
    assert place.mtus == {"bare": 1500, "ours": 1472, "host-gw": 1500}
    # One that others disturbed was taken once more.
    assert {(sample.contender, sample.measure) for sample in place.samples} == {
        (who, measure) for who in place.mtus for measure in ("tcp1", "rtt")
    }
    assert run.options["offload"] == "tso,uso"
    assert "TCP, 1 stream, Gbit/s (more is better)" in shown
    assert "--contenders bare,udp,host-gw" in shown
    assert "Ours beside the others" in (tmp_path / "report.html").read_text() or "too few samples" in shown
    assert "bench: measuring tcp1, rtt on bare, ours, host-gw: about " in said
    assert "Traceback" not in said
    assert [name for name in set(netns.names()) - before if f"bench{pid}" in name] == []
