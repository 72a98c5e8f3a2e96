"""`peers` and `top` through the program, against a real control socket; what becomes of the terminal."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from flannel_udp.admin.control_socket import control_server
from flannel_udp.admin.listener import UnixListener
from flannel_udp.admin.shapes import PeerRow, Status
from tests.support.agents import wait_for
from tests.support.patience import PATIENCE_S
from tests.support.source import Source
from tests.support.status import PEER, RUNNING
from tests.support.terminal import ENTER, LEAVE, Terminal

OTHER: PeerRow = {**PEER, "subnet": "10.1.17.0/24", "public_ip": "192.0.2.3", "heard_ago_s": 0.5}


class Growing(Source):
    """An agent that carries 1,000 bytes more at each question."""

    def __init__(self) -> None:
        self._n = 0

    def status(self) -> Status:
        assert RUNNING["counters"] is not None
        self._n += 1
        out = {**RUNNING["counters"]["out"], "bytes": 1_000 * self._n}
        return {**RUNNING, "counters": {**RUNNING["counters"], "out": out}}  # type: ignore[typeddict-item]

    async def peers(self) -> AsyncIterator[list[PeerRow]]:
        yield [PEER, OTHER]

    async def peers_by_rate(self, n: int, by: str) -> AsyncIterator[list[PeerRow]]:
        yield [{**PEER, "bytes_out_s": 5.0, "error": f"busiest {n} {by}"}]


@contextmanager
def agent(path: Path, source: Source) -> Iterator[None]:
    """Answer in a thread of our own."""
    started, loop = threading.Event(), asyncio.new_event_loop()

    async def serve() -> None:
        async with control_server(UnixListener(path), source):
            started.set()
            await asyncio.get_running_loop().create_future()

    task = loop.create_task(serve())

    def run() -> None:
        try:
            loop.run_until_complete(task)
        except asyncio.CancelledError:
            return

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(PATIENCE_S)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        loop.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.sock"


@pytest.fixture
def answering(path: Path) -> Iterator[Path]:
    with agent(path, Growing()):
        yield path


def argv(path: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "flannel_udp", *words, "--control-socket", str(path)]


def run(path: Path, *words: str) -> tuple[int, str, str]:
    done = subprocess.run(argv(path, *words), capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    return done.returncode, done.stdout, done.stderr


# peers


def test_peers_are_filtered_and_sorted(answering: Path) -> None:
    code, out, err = run(answering, "peers", "10.1.17.9")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == ["subnet", "10.1.17.0/24"]
    _, out, _ = run(answering, "peers", "--sort=heard", "-o")
    assert [line.split("\t")[:2] for line in out.splitlines()] == [
        ["10.1.17.0/24", "192.0.2.3"],
        ["10.1.16.0/24", "192.0.2.2"],
    ]
    assert run(answering, "peers", "--oneline", "--sort", "heard")[1] == out


@pytest.mark.parametrize(("flags", "shown"), [([], ""), (["-o"], ""), (["--json"], "[]\n")])
def test_who_means_nobody_gets_one_line_and_exit_code_1(flags: list[str], shown: str, answering: Path) -> None:
    line = "flannel-udp: none of 2 peers is 10.9.9.9\n"
    assert run(answering, "peers", "10.9.9.9", *flags) == (1, shown, line)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["peers", "--sort=herd"], "--sort: 'herd' is not one of subnet, .*: did you mean heard\\?"),
        (["top", "--sort=heard"], "--sort: 'heard' is not one of bytes, .*"),
        (["peers", "10.1.0.0/33"], "'10.1.0.0/33' is not a network such as 10.1.0.0/16"),
        (["peers", "--watch=0"], "--watch: '0' is no time such as 2s, 0.5s or 1m \\(0.1s at least\\)"),
        (["top", "-d", "soon"], "-d: 'soon' is no time such as 2s, 0.5s or 1m \\(0.1s at least\\)"),
        (["peers", "--json", "-o"], "--json and --oneline are both given: give one"),
    ],
)
def test_what_makes_no_sense_is_wrong_usage(words: list[str], line: str, answering: Path) -> None:
    code, out, err = run(answering, *words)
    assert (code, out) == (2, "")
    assert re.fullmatch(f"flannel-udp: {line}\n", err)


@pytest.mark.parametrize("words", [["peers"], ["peers", "--watch"], ["top"], ["top", "--once", "--json"]])
def test_without_an_agent_there_is_one_line(words: list[str], path: Path) -> None:
    code, out, err = run(path, *words)
    assert (code, out) == (1, "")
    assert err.startswith(f"flannel-udp: flannel-udp is not running: nothing answers on {path} ")
    assert err.count("\n") == 1


def test_a_narrow_terminal_gets_a_page_a_peer(answering: Path) -> None:
    with Terminal(argv(answering, "peers"), 40) as terminal:
        assert terminal.exit_code() == 0
        wait_for("the last peer", lambda: "192.0.2.3" in terminal.shown)
        assert terminal.shown.splitlines()[:2] == ["peer 10.1.16.0/24", "  public ip: 192.0.2.2"]


def test_a_watch_on_a_terminal_is_drawn_again_and_again_and_leaves_it_as_it_was(answering: Path) -> None:
    with Terminal(argv(answering, "peers", "--watch=0.1s", "192.0.2.3"), 200) as terminal:
        assert "10.1.16.0/24" not in terminal.wait_for("10.1.17.0/24")[1]
        n_frames = terminal.shown.count("subnet")
        wait_for("more frames", lambda: terminal.shown.count("subnet") > n_frames + 1)
        terminal.press("q")
        assert terminal.exit_code() == 0
        assert terminal.is_as_before()


def test_a_watch_for_programs_is_a_document_a_line(answering: Path) -> None:
    command = argv(answering, "peers", "--watch=0.1s", "--json")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert [json.loads(process.stdout.readline()) for _ in range(2)] == [[PEER, OTHER]] * 2
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
        assert process.stderr.read() == ""


def test_who_stops_reading_a_watch_ends_it(answering: Path) -> None:
    with subprocess.Popen(argv(answering, "peers", "--watch=0.1s"), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(PATIENCE_S) == 141


@pytest.mark.parametrize("command", ["peers", "status"])
def test_a_table_that_nobody_reads_ends_as_any_pipe_does(answering: Path, command: str) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as stdout:
        done = subprocess.run(
            argv(answering, command), stdout=stdout, stderr=subprocess.PIPE, timeout=PATIENCE_S, check=False
        )
    assert (done.returncode, done.stderr) == (141, b"")


# top


def test_top_once_has_rates_between_two_looks(answering: Path) -> None:
    code, out, err = run(answering, "top", "--once", "--json", "-d", "0.2", "--sort=packets", "--peers=7")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["over_s"] >= 0.2
    assert document["out"]["bytes_s"] == pytest.approx(1_000 / document["over_s"], rel=0.01)
    assert [peer["error"] for peer in document["peers"]] == ["busiest 7 packets"]
    assert document["status"]["pid"] == RUNNING["pid"]


def test_top_is_plain_where_it_is_no_terminal(answering: Path) -> None:
    code, out, err = run(answering, "top", "--once", "--delay=0.1")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "running (ready), up 1 d 1 h"
    assert "\x1b" not in out
    with Terminal(argv(answering, "top", "--delay=0.1"), environment={"TERM": "dumb"}) as terminal:
        wait_for("two frames", lambda: terminal.shown.count("running (ready)") > 1)
        assert "\x1b" not in terminal.shown
        terminal.press("\x03")
        assert terminal.exit_code() == 130


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (lambda terminal: terminal.press("q"), 0),
        (lambda terminal: terminal.press("\x03"), 130),
        (lambda terminal: terminal.process.send_signal(signal.SIGTERM), 128 + signal.SIGTERM),
        (lambda terminal: terminal.process.send_signal(signal.SIGHUP), 128 + signal.SIGHUP),
    ],
    ids=["q", "Ctrl-C", "SIGTERM", "SIGHUP"],
)
def test_top_is_drawn_and_however_it_ends_the_terminal_is_as_before(end: object, code: int, answering: Path) -> None:
    with Terminal(argv(answering, "top", "-d", "0.1")) as terminal:
        frame = terminal.wait_for("p/s")
        assert frame[0] == "running (ready), up 1 d 1 h"
        wait_for("rates", lambda: any("k B/s" in line for line in terminal.frame))
        assert terminal.mode != terminal.before
        assert callable(end)
        end(terminal)
        assert terminal.exit_code() == code
        assert terminal.is_as_before()


def test_top_interrupted_at_any_moment_leaves_the_terminal_as_before(answering: Path) -> None:
    for tenths in range(0, 12, 2):
        with Terminal(argv(answering, "top", "-d", "0.1")) as terminal:
            with pytest.raises(subprocess.TimeoutExpired):
                terminal.process.wait(tenths / 20)
            terminal.process.send_signal(signal.SIGINT)
            assert terminal.exit_code() != 0  # which it is before our code runs is Python's matter
            if ENTER in terminal.shown:
                assert terminal.is_as_before()
            assert terminal.mode == terminal.before


def test_top_fits_into_a_terminal_that_changes_its_size(answering: Path) -> None:
    with Terminal(argv(answering, "top", "-d", "30"), 120, 30) as terminal:
        assert any("last error" in line for line in terminal.wait_for("10.1.16.0/24"))
        terminal.resize(40, 6)
        wait_for("a narrow frame", lambda: 0 < max(map(len, terminal.frame), default=0) <= 40)
        assert len(terminal.frame) == 6
        assert terminal.frame[0] == "running (ready), up 1 d 1 h"


def test_top_without_colours_has_none(answering: Path) -> None:
    with Terminal(argv(answering, "top", "-d", "0.1")) as terminal:
        terminal.wait_for("10.1.16.0/24")
        assert "\x1b[32m" in terminal.styles
    with Terminal(argv(answering, "top", "-d", "0.1"), environment={"NO_COLOR": "1"}) as terminal:
        terminal.wait_for("10.1.16.0/24")
        assert [style for style in terminal.styles if re.search(r"\b3[0-9]", style)] == []


def test_top_gives_the_terminal_to_the_shell_when_it_is_stopped(answering: Path) -> None:
    with Terminal(["bash", "--norc", "--noprofile", "-i"], environment={"PS1": "$ "}) as terminal:
        terminal.press(f"{shlex.join(argv(answering, 'top', '-d', '0.1'))}\n")
        terminal.wait_for("10.1.16.0/24")
        terminal.press("\x1a")
        wait_for("it has stopped", lambda: "Stopped" in terminal.shown)
        assert terminal.shown.index(LEAVE) < terminal.shown.index("Stopped")
        terminal.press("fg\n")
        wait_for("it is drawn again", lambda: terminal.shown.count(ENTER) == 2)
        terminal.press("q")
        wait_for("it has ended", lambda: terminal.shown.count(LEAVE) == 2)
        terminal.press("exit\n")
        assert terminal.exit_code() == 0


def test_top_says_that_the_agent_is_gone_and_goes_on_with_the_next_one(path: Path) -> None:
    with ExitStack() as first:
        first.enter_context(agent(path, Growing()))
        with Terminal(argv(path, "top", "-d", "0.1"), 60) as terminal:
            terminal.wait_for("10.1.16.0/24")
            first.close()
            frame = terminal.wait_for("flannel-udp is not running")
            assert max(map(len, frame)) <= 60
            assert any("10.1.16.0/24" in line for line in frame)  # what was known last stays
            with agent(path, Growing()):
                wait_for("it is back", lambda: terminal.frame[0].startswith("running"))
                terminal.press("q")
                assert terminal.exit_code() == 0
                assert terminal.is_as_before()


def test_top_for_programs_says_so_once_on_standard_error_and_goes_on(path: Path) -> None:
    command = argv(path, "top", "-d", "0.1", "--json")
    with ExitStack() as first:
        first.enter_context(agent(path, Growing()))
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                assert process.stderr is not None
                assert json.loads(process.stdout.readline())["peers"]
                first.close()
                assert "is not running" in process.stderr.readline()
                with agent(path, Growing()):
                    assert json.loads(process.stdout.readline())["peers"]
            finally:
                process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == -signal.SIGTERM
