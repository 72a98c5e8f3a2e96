"""`bench run`: what it refuses and lacks before it starts, and that nothing of what was measured is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import pytest

from flannel_udp.bench import choosing, running
from flannel_udp.bench.choosing import SHOWN, lacking_in_labs, openers_of
from flannel_udp.bench.comparing import compare
from flannel_udp.bench.contenders import CARDS
from flannel_udp.bench.measuring import Run, Schedule, Taken
from flannel_udp.bench.quiet import Quiet
from flannel_udp.bench.results import place_record, read_result
from flannel_udp.bench.running import Output, run_and_keep
from flannel_udp.bench.samples import Sample
from flannel_udp.cli import bench_run_commands as command
from flannel_udp.cli.main import main
from flannel_udp.errors import FlannelError
from flannel_udp.lab import netns
from flannel_udp.lab.compiled import compiled
from tests.support import bench_runs
from tests.support.patience import PATIENCE_S

SCHEDULE = Schedule(1, 1, "cubic", 10)


@pytest.fixture(autouse=True)
def nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "in_labs", lambda *_: pytest.fail("started"))


def complaints(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str]]:
    """Return the exit code of `bench run` with these words, and what it complains of."""
    code = main(["bench", "run", *words])
    shown, said = capsys.readouterr()
    assert shown == ""
    return code, said.splitlines()


def test_the_command_line_has_the_names_that_there_are() -> None:
    assert tuple(SHOWN) == command.CONTENDERS
    assert tuple(CARDS) == command.UNDERLAYS


def test_each_contender_has_what_opens_it_by_the_name_of_results() -> None:
    assert set(openers_of(tuple(SHOWN), "auto")) == set(SHOWN.values())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--contenders", "bare,upd"], "--contenders: 'upd' is not one of bare, vxlan"),
        (["--contenders", ""], "--contenders: '' is not one of"),
        (["--measures", "tcp0"], "'tcp0' is not one of tcpN, tcpN-writeBYTES"),
        (["--rounds", "0"], "--rounds: '0' is not a whole number from 1 to 100"),
        (["--seconds", "0.5"], "--seconds: '0.5' is not a whole number from 1 to 60"),
        (["--offload", "tso,gos"], "--offload: 'gos' is not auto, off or one of"),
        (["--wait", "soon"], "--wait: 'soon' is no time"),
        (["--family", "6", "--measures", "udp1400"], "--measures udp1400: by IPv6"),
        (["--family", "6", "--measures", "tcp1,udp1400-loss-free"], "--measures udp1400-loss-free: by IPv6"),
        (["-o", "/nonexistent/run.json"], "-o /nonexistent/run.json: its folder is missing or not writable"),
        (["-o", "."], "-o . is a folder"),
        (["--report", "/nonexistent/r.html"], "--report /nonexistent/r.html: its folder is missing"),
        (["-o", "same", "--report", "same"], "-o and --report both name same"),
        (["--json", "--format=md"], "--json and --format are both given"),
    ],
)
def test_a_wrong_word_is_one_line_before_anything_is_measured(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, lines = complaints(capsys, *words)
    assert (code, len(lines)) == (2, 1)
    assert said in lines[0]
    assert list(tmp_path.iterdir()) == []


def refused(*_: object, **__: object) -> None:
    raise FlannelError("`ip link add` failed: Operation not supported")


def test_what_is_lacking_is_one_line_each_that_says_who_needs_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(netns, "require", lambda: None)
    monkeypatch.setattr(netns, "ip_batch", refused)
    monkeypatch.setattr(choosing, "_TUN", tmp_path / "tun")
    monkeypatch.setenv("PATH", str(tmp_path))
    contenders = "vxlan,naive,udp,vxlan-userspace,host-gw,wireguard-go"
    code, lines = complaints(capsys, "--contenders", contenders, "--underlay", "slow-1g")
    assert code == 1
    assert [line.partition(", which is not here: ")[0] for line in lines] == [
        "flannel-udp: tcp1, tcp4: needs the command iperf3",
        "flannel-udp: rtt: needs the command ping",
        "flannel-udp: naive, udp64: needs the command cc",
        "flannel-udp: vxlan: needs the command bridge",
        "flannel-udp: slow-1g: needs the command tc",
        "flannel-udp: wireguard-go: needs the command wireguard-go",
        "flannel-udp: wireguard-go: needs the command wg",
        "flannel-udp: naive, udp, vxlan-userspace, wireguard-go: needs the device /dev/net/tun",
        "flannel-udp: vxlan: needs VXLAN in the kernel",
    ]
    assert all("or leave out what needs it" in line for line in lines)


def test_all_are_all_but_a_wireguard_go_that_is_not_installed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(netns, "require", lambda: None)
    monkeypatch.setattr(netns, "ip_batch", refused)
    monkeypatch.setenv("PATH", str(tmp_path))
    code, (said, *lacking) = complaints(capsys, "--contenders", "all", "--measures", "udp512")
    assert (code, said) == (1, "bench: wireguard-go, or wg, is not installed: all are measured but it")
    assert [line.partition(", which is not here: ")[0] for line in lacking] == [
        "flannel-udp: naive, udp512: needs the command cc",
        "flannel-udp: vxlan: needs the command bridge",
        "flannel-udp: vxlan: needs VXLAN in the kernel",
    ]


def test_what_nobody_asked_for_may_be_lacking(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(netns, "require", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert lacking_in_labs(["bare", "host-gw", "wire"]) == []


def test_without_root_that_is_said_beside_the_rest_and_the_kernel_is_not_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("flannel_udp.lab.netns.os.geteuid", lambda: 1000)
    monkeypatch.setattr(netns, "ip_batch", lambda *_, **__: pytest.fail("asked"))
    monkeypatch.setenv("PATH", str(tmp_path))
    root, iperf3 = lacking_in_labs(["bare", "vxlan", "tcp1", "wire"])[:2]
    assert "needs root" in root
    assert iperf3.startswith("tcp1: needs the command iperf3")


def test_a_kernel_without_vxlan_is_asked_in_a_namespace_that_is_gone_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []

    def ip(lines: Sequence[str], *, namespace: str | None = None) -> None:
        said.extend(lines)
        if namespace is not None:
            raise FlannelError("`ip link add probed type vxlan` failed: Operation not supported")

    monkeypatch.setattr(netns, "ip_batch", ip)
    assert not choosing.has_kernel_vxlan()
    assert [line.split()[:2] for line in said] == [["netns", "add"], ["link", "add"], ["netns", "del"]]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make network namespaces")
def test_asking_the_kernel_for_vxlan_leaves_nothing() -> None:
    choosing.has_kernel_vxlan()
    assert f"flannel-udp-bench-{os.getpid()}" not in netns.names()


def test_a_busy_machine_is_waited_for_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "bench")
    foreign = iter([0.85, 0.5, 0.02, 0.9])
    quiet = Quiet(10, 60, look=lambda _: next(foreign))
    quiet.wait()
    assert next(foreign) == 0.9
    (line,) = caplog.messages
    assert line.startswith("others use 85 % of a core: waiting for at most 59 s until they use no more than 10 %")


def test_a_machine_that_stays_busy_is_waited_for_as_long_as_was_asked_in_all(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "bench")
    looks: list[float] = []

    def busy(_: tuple[int, ...]) -> float:
        looks.append(1.0)
        return 1.0

    quiet = Quiet(10, 3, look=busy)
    quiet.wait()
    quiet.wait()
    assert len(looks) == 3
    assert caplog.messages[-1].startswith("others are still busy: going on")
    Quiet(10, 0, look=lambda _: pytest.fail("looked")).wait()


class Measured:
    """Stands for labs: some samples, and then what `ends` does."""

    def __init__(self, n: int, ends: BaseException | signal.Signals | None = None, *, accepted: bool = True) -> None:
        self.n, self.ends, self.accepted = n, ends, accepted
        self.options = {"underlay": "wire", "between": "pods", "measures": ["tcp1"]}

    def measure(self, run: Run) -> None:
        run.taken.mtus["ours"] = 1472
        for number in range(1, self.n + 1):
            run.taken.samples.append(Sample(number, "ours", "tcp1", 0.0, self.accepted, {"tcp1_gbit_s": 8.0}))
        if isinstance(self.ends, signal.Signals):
            os.kill(os.getpid(), self.ends)
        elif self.ends is not None:
            raise self.ends

    def found(self, taken: Taken) -> dict[str, Any]:
        return place_record(taken.mtus, taken.samples)

    def machine(self) -> dict[str, Any]:
        return dict(bench_runs.MACHINE)


def kept(wanted: Measured, file: Path, report: Path | None = None) -> int:
    return run_and_keep(wanted, SCHEDULE, Quiet(10, 0), Output(file, report, "text"))


def test_a_run_is_kept_reported_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, report = tmp_path / "run.json", tmp_path / "report.html"
    assert kept(Measured(2), file, report) == 0
    assert read_result(file).n_rounds == 2
    assert report.read_text().startswith("<!DOCTYPE html>")
    shown, said = capsys.readouterr()
    assert "command   flannel-udp bench run --underlay wire --between pods --measures" in shown
    assert "TCP, 1 stream, Gbit/s (more is better)" in shown
    assert f"bench: written: {file}\nbench: written: {report}\n" in said


def test_where_others_disturbed_every_sample_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert kept(Measured(2, accepted=False), tmp_path / "run.json") == 0
    assert "bench: every sample was rejected: leave the machine alone" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_was_measured_until_a_signal_is_kept_and_shown(
    number: signal.Signals, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        kept(Measured(3, number), tmp_path / "run.json")
    assert ended.value.code == 128 + number
    assert read_result(tmp_path / "run.json").n_rounds == 3
    shown, said = capsys.readouterr()
    assert "TCP, 1 stream" in shown
    assert said.endswith("bench: interrupted\n")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_before_the_first_sample_leaves_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        kept(Measured(0, signal.SIGINT), tmp_path / "run.json")
    assert capsys.readouterr() == ("", "bench: interrupted before there was a sample: nothing is kept\n")
    assert list(tmp_path.iterdir()) == []


def test_what_was_measured_before_something_failed_is_kept_and_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FlannelError, match="iperf3 failed"):
        kept(Measured(1, FlannelError("iperf3 failed: no route")), tmp_path / "run.json")
    assert read_result(tmp_path / "run.json").n_rounds == 1
    assert "TCP, 1 stream" in capsys.readouterr().out


def test_a_full_disk_costs_neither_the_samples_nor_what_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_ELSEWHERE", (Path("/nonexistent"), tmp_path))
    assert kept(Measured(2), Path("/dev/full")) == 1
    shown, said = capsys.readouterr()
    assert "TCP, 1 stream" in shown
    (folder,) = tmp_path.iterdir()
    assert f"cannot write /dev/full: No space left on device; written instead: {folder}/full\n" in said
    assert read_result(folder / "full").n_rounds == 2


def test_where_there_is_no_room_at_all_that_is_said_and_the_table_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_ELSEWHERE", (Path("/nonexistent"),))
    assert kept(Measured(2), Path("/dev/full")) == 1
    shown, said = capsys.readouterr()
    assert "TCP, 1 stream" in shown
    assert "No space left on device; nor is there room in /nonexistent\n" in said


# The checkout comes last: the installed package is under test.
PROGRAM = f"""
import os, signal, sys
from pathlib import Path
sys.path.append({str(Path(__file__).parents[2])!r})
from tests.unit.test_bench_run import Measured, kept
from flannel_udp.cli import main as cli

class Interrupted(Measured):
    def machine(self):
        os.kill(os.getpid(), signal.SIGINT)
        return super().machine()

cli._dispatch = lambda words: kept({{"Interrupted": Interrupted, "Measured": Measured}}[words[1]](2), Path(words[0]))
sys.exit(cli.main())
"""


def program(file: Path, kind: str, stdout: int | IO[str]) -> subprocess.CompletedProcess[str]:
    """Run it as a process of its own, which has no threads as this one may have."""
    command = [sys.executable, "-P", "-c", PROGRAM, str(file), kind]
    return subprocess.run(
        command, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=2 * PATIENCE_S, check=False
    )


def test_a_signal_while_it_is_written_waits_until_it_is(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    done = program(file, "Interrupted", subprocess.PIPE)
    assert (done.returncode, done.stderr) == (130, f"bench: written: {file}\nbench: interrupted\n")
    assert read_result(file).n_rounds == 2
    assert "TCP, 1 stream" in done.stdout


def test_a_reader_who_has_gone_costs_no_file(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as gone:
        done = program(file, "Measured", gone)
    assert (done.returncode, done.stderr) == (141, f"bench: written: {file}\n")
    assert read_result(file).n_rounds == 2


def test_runs_whose_agents_had_other_offloads_are_compared_and_that_is_said(tmp_path: Path) -> None:
    import random

    chooser = random.Random("offload")
    on, off = (
        bench_runs.run_of(
            tmp_path / f"{name}.json",
            bench_runs.samples(chooser, {**bench_runs.FIGURES, "ours": ours}),
            options={**bench_runs.OPTIONS, "offload": offload},
        )
        for name, ours, offload in (("on", 8.0, "auto"), ("off", 3.0, "off"))
    )
    found = compare(on, off)
    assert "our agents ran with other offloads: offload auto → off" in found.remarks
    verdicts = {row.contender: row.verdict for row in found.rows if row.metric.name == "tcp1_gbit_s"}
    assert verdicts == {"bare": "no difference", "vxlan": "no difference", "naive": "no difference", "ours": "worse"}


def test_the_json_on_standard_output_is_that_of_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.json"
    run_and_keep(Measured(1), SCHEDULE, Quiet(10, 0), Output(file, None, "json"))
    first = json.loads(capsys.readouterr().out)
    assert main(["bench", "show", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == first


@pytest.mark.parametrize(
    ("compiler", "said"),
    [
        ("#!/bin/sh\necho 'x.c:1:10: fatal error: stdio.h: No such file' >&2\nexit 1\n", "fatal error: stdio.h"),
        ("#!/bin/sh\nexit 1\n", "exit 1"),
        ("", "cannot run cc: "),
    ],
    ids=["no headers", "silent", "none"],
)
def test_a_compiler_that_does_not_do_is_one_line(
    compiler: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "x.c"
    source.write_text("int main(void) { return 0; }\n")
    if compiler:
        (tmp_path / "cc").write_text(compiler)
        (tmp_path / "cc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FlannelError, match=r"\A.*\Z") as failed:
        compiled(source)
    assert said in str(failed.value)
    assert "gcc" in str(failed.value)
