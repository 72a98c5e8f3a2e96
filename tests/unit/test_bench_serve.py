"""`bench serve` and `bench run --to`: what either says to whoever does not speak as the other one does."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from flannel_udp.bench.lines import Conversation
from flannel_udp.cli.main import main
from flannel_udp.errors import FlannelError
from tests.support.agents import wait_for
from tests.support.patience import PATIENCE_S

NEEDS_IPERF3 = pytest.mark.skipif(shutil.which("iperf3") is None, reason="bench serve needs iperf3")
HELLO = {"want": "hello", "format": 1}


class Serve:
    """The command as a process, listening at a free port of loopback; what it says, line by line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        self.process, self._said = process, process.stderr
        self.port = int(self.line(r"serving at 127.0.0.1, port (\d+)")[1])

    def line(self, pattern: str) -> re.Match[str]:
        """Wait for a line."""
        seen = []
        for line in self._said:
            seen.append(line)
            if found := re.search(pattern, line):
                return found
        raise AssertionError(f"ended without {pattern!r}: {seen}")

    @contextlib.contextmanager
    def client(self) -> Iterator[Conversation]:
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE_S) as sock:
            yield Conversation(sock, "serve")


@pytest.fixture(scope="module")
def subnet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a host whose overlay address is one of loopback's."""
    path = tmp_path_factory.mktemp("serve") / "subnet.env"
    lines = ["FLANNEL_NETWORK=127.9.0.0/16", "FLANNEL_SUBNET=127.9.8.1/24", "FLANNEL_MTU=1472", "FLANNEL_IPMASQ=true"]
    path.write_text("\n".join(lines) + "\n")
    return path


@contextlib.contextmanager
def serving(*words: str, path: Path | None = None) -> Iterator[Serve]:
    """Run it, with this folder alone as PATH if there is one."""
    command = [sys.executable, "-P", "-m", "flannel_udp", "bench", "serve", "--listen", "127.0.0.1", "--port", "0"]
    environ = None if path is None else {**os.environ, "PATH": str(path)}
    with subprocess.Popen([*command, *words], stderr=subprocess.PIPE, text=True, env=environ) as process:
        given_up = threading.Timer(2 * PATIENCE_S, process.kill)
        given_up.start()
        try:
            yield Serve(process)
        finally:
            given_up.cancel()
            process.kill()


@pytest.fixture(scope="module")
def serve(subnet_file: Path) -> Iterator[Serve]:
    with serving("--subnet-file", str(subnet_file)) as running:
        yield running


@NEEDS_IPERF3
def test_it_tells_its_overlay_address_and_one_client_at_a_time_is_served(serve: Serve) -> None:
    with serve.client() as first:
        first.say(HELLO)
        told = first.hear(PATIENCE_S)
        assert (told["format"], told["overlay"], told["mtu"]) == (1, "127.9.8.0", 1472)
        with serve.client() as second:
            assert second.hear(PATIENCE_S) == {"error": "127.0.0.1 measures just now: try again later"}
        first.say({"want": "stop"})
        assert first.hear(PATIENCE_S) == {"stopped": True}
    with serve.client() as third:
        third.say(HELLO)
        assert third.hear(PATIENCE_S)["overlay"] == "127.9.8.0"


@NEEDS_IPERF3
def test_a_run_is_told_to_come_later_while_another_one_measures(
    serve: Serve, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with serve.client() as first:
        first.say(HELLO)
        first.hear(PATIENCE_S)
        assert main(["bench", "run", "--to", "127.0.0.1", "--port", str(serve.port), "--measures", "tcp1"]) == 1
    assert capsys.readouterr().err == "flannel-udp: 127.0.0.1: 127.0.0.1 measures just now: try again later\n"


@NEEDS_IPERF3
@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", None),
        (b"[1]\n", None),
        (b"\xff\xfe\n", None),
        (b"[" * 4000 + b"\n", None),
        (b"x" * 100_000, None),
        (b'{"want": "hello", "format": 2}\n', "another version of flannel-udp"),
        (b'{"want": "shell"}\n', "no such wish"),
        (b'{"want": ["iperf3"]}\n', "no such wish"),
        (b'{"want": "iperf3", "at": "10.0.0.1; reboot"}\n', "neither at the overlay nor at the underlay"),
        (b'{"want": "reach"}\n', "neither at the overlay nor at the underlay"),
        (b'{"want": "datagrams", "at": "underlay", "window_ms": 60001}\n', "no window of 0 to 60000 ms"),
        (b'{"want": "datagrams", "at": "underlay", "window_ms": "1; reboot"}\n', "no window of 0 to 60000 ms"),
        (b'{"want": "datagrams", "at": "10.0.0.1", "window_ms": 0}\n', "neither at the overlay nor at the underlay"),
        (b'{"want": "counted"}\n', "no datagrams are counted"),
    ],
)
def test_whoever_speaks_otherwise_ends_no_more_than_its_own_connection(
    serve: Serve, sent: bytes, answer: str | None
) -> None:
    with serve.client() as client:
        with contextlib.suppress(OSError):  # it hangs up while some of it still is on its way
            client.sock.sendall(sent)
        if answer is not None:
            assert answer in client.hear(PATIENCE_S)["error"]
        with pytest.raises(FlannelError, match=r"has hung up|reset by peer"):
            client.hear(PATIENCE_S)
    with serve.client() as next_one:
        next_one.say(HELLO)
        assert "overlay" in next_one.hear(PATIENCE_S)


def n_sockets(pid: int) -> int:
    """Return how many sockets a process has open."""
    found = 0
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found += str(each.readlink()).startswith("socket:")
    return found


@NEEDS_IPERF3
def test_without_descriptors_nobody_is_let_in_which_is_said_once_until_there_are_some(serve: Serve) -> None:
    pid = serve.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    wait_for("the client before has been let go", lambda: n_sockets(pid) == 1)  # the one that listens
    highest = max(int(each.name) for each in Path(f"/proc/{pid}/fd").iterdir())
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest + 1, limits[1]))
    try:
        with serve.client():
            pass  # an accept that waits has its descriptor already: this one takes it
        serve.line(r"bench: nobody is let in for now: Too many open files")
        with serve.client() as waiting:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
            waiting.say(HELLO)
            assert "overlay" in waiting.hear(PATIENCE_S)
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


@NEEDS_IPERF3
def test_a_client_for_whom_no_descriptor_is_left_is_told_so_and_the_next_one_is_served(serve: Serve) -> None:
    pid = serve.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    with serve.client() as client:
        client.say(HELLO)
        client.hear(PATIENCE_S)
        highest = max(int(each.name) for each in Path(f"/proc/{pid}/fd").iterdir())
        # Enough for subnet.env, and not for iperf3's pipes.
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest + 2, limits[1]))
        try:
            client.say({"want": "iperf3", "at": "underlay"})
            assert client.hear(PATIENCE_S) == {"error": "Too many open files"}
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    with serve.client() as next_one:
        next_one.say(HELLO)
        assert "overlay" in next_one.hear(PATIENCE_S)


@NEEDS_IPERF3
def test_where_the_other_host_cannot_count_datagrams_that_is_said_before_anything_is_measured(
    subnet_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    iperf3 = shutil.which("iperf3")
    assert iperf3 is not None
    (tmp_path / "iperf3").symlink_to(iperf3)
    with serving("--subnet-file", str(subnet_file), path=tmp_path) as running:
        words = ["--to", "127.0.0.1", "--port", str(running.port), "--measures", "tcp1,udp64,udp512-loss-free"]
        assert main(["bench", "run", *words]) == 1
    said = capsys.readouterr().err
    assert said.startswith("flannel-udp: udp64, udp512-loss-free: 127.0.0.1 lacks a C compiler (the package gcc)")
    assert said.count("\n") == 1


@NEEDS_IPERF3
def test_who_connects_and_says_nothing_keeps_nobody_out_for_long(serve: Serve) -> None:
    with serve.client():
        serve.line(r"127.0.0.1 has said nothing for 10 s")


@NEEDS_IPERF3
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_by_a_signal_without_a_fault(number: signal.Signals, subnet_file: Path) -> None:
    with serving("--subnet-file", str(subnet_file)) as running:
        running.process.send_signal(number)
        assert running.process.wait(PATIENCE_S) == 0


@NEEDS_IPERF3
def test_a_host_without_an_overlay_is_told_so_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with serving("--subnet-file", str(tmp_path / "none.env")) as running:
        code = main(["bench", "run", "--to", "127.0.0.1", "--port", str(running.port), "--measures", "tcp1"])
    shown, said = capsys.readouterr()
    assert (code, shown) == (1, "")
    assert said.startswith(f"flannel-udp: 127.0.0.1: there is no {tmp_path}/none.env: the agent writes it")
    assert list(tmp_path.iterdir()) == []


@NEEDS_IPERF3
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--listen", "192.0.2.77"], "cannot listen at 192.0.2.77, port 5200: Cannot assign requested address"),
        (["--listen", "all"], "--listen: 'all' is not an IP address"),
        (["--port", "65536"], "--port: '65536' is not a whole number from 0 to 65535"),
    ],
)
def test_what_cannot_be_listened_at_is_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "serve", *words]) != 0
    complaint = capsys.readouterr().err
    assert said in complaint
    assert complaint.count("\n") == 1


@NEEDS_IPERF3
def test_a_port_that_is_taken_is_said(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", "--listen", "127.0.0.1", "--port", str(serve.port)]) == 1
    assert capsys.readouterr().err == (
        f"flannel-udp: cannot listen at 127.0.0.1, port {serve.port}: Address already in use\n"
    )


def test_without_iperf3_neither_end_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["bench", "serve", "--listen", "127.0.0.1", "--port", "0"]) == 1
    assert "needs the command iperf3" in capsys.readouterr().err
    monkeypatch.setattr("flannel_udp.bench.choosing.os.geteuid", lambda: 1000)
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "run", "--to", "127.0.0.1"]) == 1
    assert [line.partition(", which is not here")[0] for line in capsys.readouterr().err.splitlines()] == [
        "flannel-udp: tcp1, tcp4: needs the command iperf3",
        "flannel-udp: rtt: needs the command ping",
        "flannel-udp: rtt: needs root",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--to", "h2", "--measures", "udp64-both"], "--measures udp64-both: to another host datagrams are only sent"),
        (["--to", "h2", "--offload", "off"], "--offload is about labs"),
        (["--to", "h2", "--contenders", "bare"], "--contenders is about labs"),
        (["--to", ""], "--to: '' is no host"),
        (["--to", "a\x1bb"], "is no host"),
        (["--port", "1"], "--port is about two hosts"),
    ],
)
def test_what_makes_no_sense_with_or_without_a_host_is_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "run", *words]) == 2
    complaint = capsys.readouterr().err
    assert said in complaint
    assert complaint.count("\n") == 1


@NEEDS_IPERF3
def test_where_nobody_serves_that_is_said(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket() as taken:  # bound, so that nobody else gets the port; but nobody listens
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        assert main(["bench", "run", "--to", "127.0.0.1", "--port", str(port), "--measures", "tcp1"]) == 1
    assert capsys.readouterr().err == (
        f"flannel-udp: --to 127.0.0.1, port {port}: Connection refused: does `flannel-udp bench serve` run there?\n"
    )


@NEEDS_IPERF3
@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"{}\n",
        b'{"overlay": "nowhere", "mtu": 1, "machine": ""}\n',
        b'{"overlay": "10.244.2.0", "mtu": [], "machine": ""}\n',
        b'{"overlay": "10.244.2.0", "mtu": 1472, "machine": "\\u001b[2J"}\n',
    ],
)
def test_who_serves_something_else_is_named(
    answer: bytes, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def once() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.sendall(answer)
                sock.recv(4096)

        other = threading.Thread(target=once)
        other.start()
        port = listener.getsockname()[1]
        code = main(["bench", "run", "--to", "127.0.0.1", "--port", str(port), "--measures", "tcp1"])
        other.join()
    said = capsys.readouterr().err
    assert code == 1
    assert re.fullmatch(r"flannel-udp: 127.0.0.1 does not speak as bench serve .*\n", said), said
