"""`bench run` as a user has it: from the installed package, in labs, and between two hosts that a lab stands for."""

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
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.plan import Plan
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import PATIENCE_S

pytestmark = [
    *NEEDS_NETNS,
    pytest.mark.skipif(
        not all(map(shutil.which, ("iperf3", "ping", "cc"))), reason="the bench needs iperf3, ping and cc"
    ),
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


def test_two_hosts_are_measured_by_underlay_and_overlay_and_who_leaves_keeps_nobody_out(tmp_path: Path) -> None:
    with Lab(Plan(fresh_name(), hosts=2, pods=0)) as lab:
        near, far = lab.hosts
        serve = [*PROGRAM, "serve", "--listen", str(far.underlay), "--subnet-file", str(far.subnet_file)]
        to = [*PROGRAM, "run", "--to", str(far.underlay), "--control-socket", str(near.control_socket), *SHORT]
        with far.popen(serve, stderr=subprocess.PIPE) as serving:
            try:
                heard(serving, "serving at")
                file = tmp_path / "left.json"
                long = [*to, "--rounds", "50", "--measures", "tcp1", "--max-foreign", "100000", "-o", str(file)]
                with near.popen(long, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as leaving:
                    heard(leaving, "round 1/50")
                    leaving.send_signal(signal.SIGINT)
                    leaving.communicate(timeout=PATIENCE_S)
                assert leaving.returncode == 130
                assert read_result(file).n_rounds >= 1
                heard(serving, "has hung up")

                file = tmp_path / "run.json"
                words = ["--measures", "tcp1,udp64,rtt", "--max-foreign", "100000", "-o", str(file)]
                shown = near.run([*to, *words], timeout_s=2 * PATIENCE_S).stdout
                serving.send_signal(signal.SIGINT)
                serving.communicate(timeout=PATIENCE_S)
                assert serving.returncode == 0
            finally:
                serving.kill()
    (place,) = read_result(file).places
    assert place.name == f"to {far.underlay}, by the underlay (bare) and by the overlay (ours)"
    assert place.mtus == {"bare": 1500, "ours": 1472}
    taken = {(sample.contender, sample.measure) for sample in place.samples if sample.accepted}
    assert taken == {(who, measure) for who in ("bare", "ours") for measure in ("tcp1", "udp64", "rtt")}
    assert f"flannel-udp bench run --to {far.underlay} --measures tcp1,udp64,rtt" in shown


def heard(process: subprocess.Popen[str], words: str) -> None:
    """Wait until a process has said this on standard error."""
    assert process.stderr is not None
    given_up = threading.Timer(PATIENCE_S, process.kill)
    given_up.start()
    said = []
    for line in process.stderr:
        said.append(line)
        if words in line:
            given_up.cancel()
            return
    given_up.cancel()
    raise AssertionError(f"ended without {words!r}: {''.join(said)}")
