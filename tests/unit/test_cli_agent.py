"""`status`, `peers`, `route get` and `route list` through the program, against a real control socket."""

import asyncio
import json
import os
import pty
import signal
import socket
import sys
from pathlib import Path

import pytest

from flannel_udp.admin import client
from flannel_udp.admin.control_socket import control_server
from flannel_udp.admin.listener import UnixListener
from flannel_udp.admin.shapes import Status
from flannel_udp.cli.main import main
from tests.support.patience import PATIENCE_S
from tests.support.source import Source
from tests.support.stand_in import answering
from tests.support.status import PEER, ROUTES, RUNNING, WAITING


class Waiting(Source):
    """An agent that isn't ready for the first so many questions."""

    def __init__(self, n_questions: int) -> None:
        super().__init__()
        self._left = n_questions

    def status(self) -> Status:
        self._left -= 1
        return WAITING if self._left >= 0 else RUNNING


async def ask(directory: Path, *words: str, source: Source | None = None) -> tuple[int | None, str, str]:
    """Return exit code, output and errors of one command while an agent answers."""
    path = directory / "agent.sock"
    async with control_server(UnixListener(path), source or Source()):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "flannel_udp", *words, "--control-socket", str(path)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), timeout=PATIENCE_S)
    return process.returncode, out.decode(), err.decode()


OWN = {"address": "10.1.15.7", "verdict": "own subnet", "reason": "it is here", "subnet": "10.1.15.0/24"}
NOWHERE = {"address": "10.1.9.9", "verdict": "no route", "reason": "no lease covers it"}


@pytest.mark.parametrize(
    ("words", "code", "document"),
    [
        (["status"], 0, RUNNING),
        (["peers"], 0, [PEER]),
        (["route", "get", "10.1.15.7"], 0, OWN),
        (["route", "get", "10.1.9.9"], 1, NOWHERE),
        (["route", "get", "10.1.15.7", "10.1.9.9"], 1, [OWN, NOWHERE]),
        (["route", "list"], 0, ROUTES),
    ],
)
async def test_json_is_the_agents_document(words: list[str], code: int, document: object, tmp_path: Path) -> None:
    done, out, err = await ask(tmp_path, *words, "--json")
    assert (done, err) == (code, "")
    assert json.loads(out) == document


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["status"], "10.1.15.0/24"),
        (["peers"], "192.0.2.2"),
        (["peers", "--json=false"], "192.0.2.2"),
        (["route", "get", "10.1.15.7", "10.1.15.7"], "it is here"),
        (["route", "list"], "10.1.16.0/24 via 192.0.2.2:8285 dev eth0 tunnel flannel0"),
    ],
)
async def test_people_get_text(words: list[str], shown: str, tmp_path: Path) -> None:
    code, out, err = await ask(tmp_path, *words)
    assert (code, err) == (0, "")
    assert shown in out
    with pytest.raises(ValueError, match=r"Expecting|Extra data"):
        json.loads(out)


@pytest.mark.parametrize(
    ("words", "whole"),
    [
        (["status"], ("10.1.15.0/24", "192.0.2.1", "10.1.15.0-24")),
        (["peers"], ("10.1.16.0/24", "192.0.2.2")),
        (["route", "get", "fd00:10:244:ffff:ffff:ffff:ffff:ffff"], ("fd00:10:244:ffff:ffff:ffff:ffff:ffff no route",)),
    ],
)
async def test_forty_columns_cut_no_address(
    words: list[str], whole: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    code, out, err = await ask(tmp_path, *words)
    assert (code, err) == (1 if words[0] == "route" else 0, "")  # the address has no route
    assert [text for text in whole if text not in out] == []


async def test_what_the_agent_cannot_answer_is_one_line(tmp_path: Path) -> None:
    assert await ask(tmp_path, "route", "get", "10.1.0.1") == (1, "", "flannel-udp: no network configuration yet\n")


async def test_of_several_addresses_one_without_a_route_makes_the_exit_code_1(tmp_path: Path) -> None:
    code, out, err = await ask(tmp_path, "route", "get", "10.1.15.7", "10.1.9.9")
    assert (code, err) == (1, "")
    assert out.splitlines() == [
        "10.1.15.7 own subnet 10.1.15.0/24",
        "    it is here",
        "10.1.9.9 no route",
        "    no lease covers it",
    ]


async def test_of_several_addresses_one_that_is_none_is_wrong_usage_and_nothing_is_shown(tmp_path: Path) -> None:
    done = await ask(tmp_path, "route", "get", "10.1.15.7", "pod")
    assert done == (2, "", "flannel-udp: 'pod' is not an IP address\n")


@pytest.mark.parametrize(
    ("words", "subnets"),
    [
        (["--subnet=10.1.16.0/24"], ["10.1.16.0/24"]),
        (["--subnet=10.1.16.5"], ["10.1.16.0/24"]),
        (["--subnet=10.1.0.0/20"], ["10.1.9.0/24", "10.1.15.0/24"]),
        (["--subnet=::/0"], ["fd00:1:0:16::/64"]),
        (["--peer=192.0.2.2"], ["10.1.16.0/24"]),
        (["--peer=2001:DB8:0::2"], ["fd00:1:0:16::/64"]),
        (["--peer=192.0.2.2", "--subnet=10.1.0.0/16"], ["10.1.16.0/24"]),
    ],
)
async def test_routes_may_be_asked_for_by_subnet_and_peer(words: list[str], subnets: list[str], tmp_path: Path) -> None:
    code, out, err = await ask(tmp_path, "route", "list", *words)
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == subnets


@pytest.mark.parametrize(("json_flag", "shown"), [([], ""), (["--json"], "[]\n")])
async def test_no_such_route_is_one_line_and_exit_code_1(json_flag: list[str], shown: str, tmp_path: Path) -> None:
    done = await ask(tmp_path, "route", "list", "--peer=192.0.2.2", "--subnet=10.1.9.0/24", *json_flag)
    line = "flannel-udp: none of 4 routes is one of --subnet=10.1.9.0/24 --peer=192.0.2.2\n"
    assert done == (1, shown, line)


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("--peer=h2", "--peer: 'h2' is not an IP address"),
        ("--subnet=h2", "--subnet: 'h2' is not a network such as 10.1.0.0/16"),
    ],
)
async def test_routes_of_no_address_are_wrong_usage(word: str, line: str, tmp_path: Path) -> None:
    assert await ask(tmp_path, "route", "list", word) == (2, "", f"flannel-udp: {line}\n")


# status --wait


async def test_status_of_an_agent_that_is_not_ready_is_no_failure_unless_it_is_waited_for(tmp_path: Path) -> None:
    code, out, err = await ask(tmp_path, "status", source=Waiting(99))
    assert (code, err) == (0, "")
    assert "waiting for configuration (not ready)" in out
    code, out, err = await ask(tmp_path, "status", "--wait=1s", "--json", source=Waiting(99))
    assert (code, err) == (1, "flannel-udp: not ready within 1 s: waiting for configuration\n")
    assert json.loads(out) == WAITING


@pytest.mark.parametrize("word", ["--wait", "--wait=60", "--wait=1m"])
async def test_an_agent_that_gets_ready_in_time_is_waited_for(word: str, tmp_path: Path) -> None:
    code, out, err = await ask(tmp_path, "status", word, source=Waiting(3))
    assert (code, err) == (0, "")
    assert "running (ready)" in out


@pytest.mark.parametrize("text", ["soon", "-1s", "1.5s", "1d", "9999999"])
async def test_a_wait_that_is_no_time_is_wrong_usage(text: str, tmp_path: Path) -> None:
    line = f"flannel-udp: --wait: {text!r} is no time such as 30s, 5m or 1h\n"
    assert await ask(tmp_path, "status", f"--wait={text}") == (2, "", line)


async def test_a_wait_where_no_agent_comes_fails_with_one_line(tmp_path: Path) -> None:
    path = tmp_path / "nobody.sock"
    words = ("status", "--wait=1s", f"--control-socket={path}")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "flannel_udp", *words),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), timeout=PATIENCE_S)
    assert (process.returncode, out) == (1, b"")
    assert err.decode().startswith(f"flannel-udp: flannel-udp is not running: nothing answers on {path} ")


async def test_an_agent_that_is_slow_at_first_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(client, "TIMEOUT_S", 0.1)
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        listening.settimeout(PATIENCE_S)
        asking = asyncio.create_task(asyncio.to_thread(main, ["status", "--wait=5m", f"--control-socket={path}"]))
        # Who asks again had no answer to the former question. One is open still, one was given up.
        asked = [(await asyncio.to_thread(listening.accept))[0] for _ in range(2)]
    for connected in asked:
        connected.close()
    path.unlink()
    async with control_server(UnixListener(path), Waiting(1)):
        assert await asyncio.wait_for(asking, PATIENCE_S) == 0
    assert "running (ready)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "cut_off",
    [b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n{", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{"],
)
def test_an_answer_that_is_cut_off_is_that_of_an_agent_that_ends(tmp_path: Path, cut_off: bytes) -> None:
    path = tmp_path / "agent.sock"
    with answering(path, cut_off), pytest.raises(client.AgentAway, match="is not a flannel-udp agent"):
        client.fetch_status(path)


def test_an_agent_that_never_answers_is_said_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "agent.sock"
    with answering(path, b"", hangs=True):
        assert main(["status", "--wait=1s", f"--control-socket={path}"]) == 1
    assert capsys.readouterr().err == f"flannel-udp: the agent on {path} did not answer within 1 s\n"


def test_what_an_agent_said_before_it_fell_silent_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = [WAITING]

    def fetch(_path: Path, _timeout_s: float) -> Status:
        if not answers:
            raise client.AgentSlow
        return answers.pop()

    monkeypatch.setattr(client, "fetch_status", fetch)
    assert main(["status", "--wait=1s", f"--control-socket={tmp_path / 'agent.sock'}"]) == 1
    told = capsys.readouterr()
    assert "waiting for configuration (not ready)" in told.out
    assert told.err == "flannel-udp: not ready within 1 s: waiting for configuration\n"


async def test_a_socket_of_another_program_ends_the_wait_at_once(tmp_path: Path) -> None:
    path = tmp_path / "ssh.sock"
    with answering(path, b"SSH-2.0-OpenSSH_9.2\r\n"):
        waiting = asyncio.to_thread(main, ["status", "--wait=1h", f"--control-socket={path}"])
        assert await asyncio.wait_for(waiting, PATIENCE_S) == 1


async def test_a_wait_on_a_terminal_says_what_for_and_may_be_interrupted(tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    path = tmp_path / "agent.sock"
    async with control_server(UnixListener(path), Waiting(9999)):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "flannel_udp", "status", "--wait=5m", "--control-socket", str(path)),
            stdout=asyncio.subprocess.PIPE,
            stderr=follower,
        )
        try:
            said = b""
            while not said.endswith(b"\n"):  # a terminal passes the end of a line on by itself
                said += await asyncio.wait_for(asyncio.to_thread(os.read, leader, 4096), 60)
            assert said == b"flannel-udp: not ready: waiting for configuration\r\n"
            process.send_signal(signal.SIGINT)
            out, _ = await asyncio.wait_for(process.communicate(), 60)
            assert (process.returncode, out) == (130, b"")
            os.close(follower)
            with pytest.raises(OSError, match="Input/output error"):  # nothing more was said
                os.read(leader, 4096)
        finally:
            os.close(leader)
