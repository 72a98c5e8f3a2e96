"""Ctrl-C in the middle of a bench: what was measured is there, and no lab is left."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flannel_udp.bench.results import read_result
from flannel_udp.lab import netns
from tests.support.patience import PATIENCE_S

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(
        not all(map(shutil.which, ("iperf3", "ping", "cc"))), reason="the bench needs iperf3, ping and cc"
    ),
]

ROOT = Path(__file__).parents[2]
# Not `-m` in the checkout, which would hide the installed package: that is under test.
FORWARD = [
    "-c",
    f"import sys; sys.path.append({str(ROOT)!r}); from bench.forward import main; sys.exit(main())",
    "--json",
]
RUN = ["-P", "-m", "flannel_udp", "bench", "run", "--wait", "0", "-o"]


@pytest.mark.parametrize("program", [FORWARD, RUN], ids=["bench.forward", "bench run"])
def test_an_interrupted_bench_keeps_what_it_has_measured_and_removes_its_labs(
    program: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "run.json"
    words = [str(file), "--measures", "tcp1", "--seconds", "1", "--rounds", "50", "--between", "hosts"]
    with subprocess.Popen(
        [sys.executable, *program, *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as bench:
        given_up = threading.Timer(3 * PATIENCE_S, bench.kill)  # four labs and a round of all of them
        given_up.start()
        try:
            assert bench.stderr is not None
            said = []
            for line in bench.stderr:
                said.append(line)
                if "round 1/50, about" in line:
                    break
            given_up.cancel()
            bench.send_signal(signal.SIGINT)
            shown, rest = bench.communicate(timeout=PATIENCE_S)
        finally:
            given_up.cancel()
            bench.kill()
    assert bench.returncode == 128 + signal.SIGINT, "".join(said) + rest
    assert "interrupted" in rest
    assert "Traceback" not in rest
    assert "TCP, 1 stream, Gbit/s (more is better)" in shown
    (place,) = read_result(file).places
    assert place.name == "underlay wire, between hosts"
    assert 1 <= len(place.samples) < 50 * 4
    assert set(place.mtus) == {"bare", "vxlan", "naive", "ours"}
    assert [name for name in netns.names() if f"bench{bench.pid}" in name] == []
