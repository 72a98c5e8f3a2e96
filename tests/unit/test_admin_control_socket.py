"""The control socket and its client, over a real unix socket: what is asked, what goes wrong, what is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import uvloop

from flannel_udp.admin import client
from flannel_udp.admin.control_socket import control_server
from flannel_udp.admin.listener import UnixListener
from flannel_udp.admin.shapes import PeerRow, Status
from flannel_udp.admin.trace_request import Said, make_request
from flannel_udp.errors import FlannelError, UsageError
from tests.support.patience import PATIENCE_S, promised
from tests.support.source import Source
from tests.support.stand_in import answering
from tests.support.status import CLOUD_ROUTES, PEER, ROUTES, RUNNING
from tests.support.traces import ARRIVAL, traced


def raw(path: Path, method: str, target: str, body: str | None = None) -> tuple[int, str]:
    connection = client._UnixConnection(path, PATIENCE_S)
    try:
        connection.request(method, target, body)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.sock"


TRACED = make_request(ip_address("10.1.15.7"), ip_address("10.1.16.5"), Said())


async def test_a_packet_that_is_asked_about_arrives_and_is_answered(path: Path) -> None:
    async with control_server(UnixListener(path), Source()):
        trace = await ask(client.fetch_trace, path, TRACED)
        assert trace == traced(TRACED)
        assert await ask(client.fetch_arrival, path, "192.0.2.1", trace["datagrams"][0]) == ARRIVAL


@pytest.mark.parametrize("body", ["", "{", "[]", '{"source": "10.1.1.1"}', "[" * 100_000])
async def test_what_asks_about_no_packet_is_refused_in_one_line(path: Path, body: str) -> None:
    async with control_server(UnixListener(path), Source()):
        for target in ("/v1/trace", "/v1/arrival"):
            status, answer = await ask(raw, path, "POST", target, body)
            assert (status, answer.startswith('{"error": "POST ' + target)) == (400, True)


async def ask(function: Callable[..., Any], *arguments: Any) -> Any:
    return await asyncio.to_thread(function, *arguments)


async def test_status_peers_and_route_arrive_as_the_daemon_gave_them(path: Path) -> None:
    async with control_server(UnixListener(path), Source()):
        assert await ask(client.fetch_status, path) == RUNNING
        assert await ask(client.fetch_peers, path) == [PEER]
        assert await ask(client.fetch_routes, path) == ROUTES
        assert await ask(client.fetch_cloud_routes, path) == CLOUD_ROUTES
        for address in ("10.1.9.9", "fd00:1::9"):
            assert (await ask(client.fetch_route, path, ip_address(address)))["address"] == address


@pytest.mark.parametrize("sizes", [(), (3,), (2, 1, 3)])
async def test_peers_that_come_in_parts_arrive_as_one_list(path: Path, sizes: tuple[int, ...]) -> None:
    class Parts(Source):
        async def peers(self) -> AsyncIterator[list[PeerRow]]:
            for size in sizes:
                yield [PEER] * size

    async with control_server(UnixListener(path), Parts()):
        assert await ask(client.fetch_peers, path) == [PEER] * sum(sizes)


async def test_the_busiest_peers_are_asked_for_by_number_and_key(path: Path) -> None:
    class Busy(Source):
        async def peers_by_rate(self, n: int, by: str) -> AsyncIterator[list[PeerRow]]:
            yield [{**PEER, "problem": f"{n} {by}"}]

    async with control_server(UnixListener(path), Busy()):
        (row,) = await ask(client.fetch_busiest_peers, path, 20, "packets-in")
    assert row["problem"] == "20 packets-in"


async def test_peers_that_cannot_be_told_are_one_clear_line(path: Path) -> None:
    class Early(Source):
        async def peers(self) -> AsyncIterator[list[PeerRow]]:
            raise FlannelError("no peers yet")
            yield  # what makes it a generator

    async with control_server(UnixListener(path), Early()):
        with pytest.raises(FlannelError, match="no peers yet"):
            await ask(client.fetch_peers, path)


async def test_socket_is_for_its_owner_only_and_goes_with_the_agent(tmp_path: Path) -> None:
    path = tmp_path / "run" / "agent.sock"
    before = os.umask(0)
    try:
        async with control_server(UnixListener(path), Source()):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(before)
    assert list(path.parent.iterdir()) == []


async def test_directory_is_made_for_everybody_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        async with control_server(UnixListener(tmp_path / "run" / "agent.sock"), Source()):
            assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o755
    finally:
        os.umask(before)


def test_socket_never_was_open_to_others_not_even_for_a_moment(path: Path) -> None:
    """The umask hides nothing here, and the mode is looked at between bind() and listen(): nobody could connect yet."""
    code = (
        "import asyncio, os, socket, sys, pathlib\n"
        "from flannel_udp.admin.listener import UnixListener\n"
        "from flannel_udp.admin.control_socket import control_server\n"
        "os.umask(0)\n"
        "def hook(event, args):\n"
        "    if event == 'socket.bind': sys.stdout.write('bind ')\n"
        "listen = socket.socket.listen\n"
        "class Watched(socket.socket):\n"
        "    def listen(self, *a):\n"
        "        print(oct(os.stat(sys.argv[1]).st_mode & 0o777)); return super().listen(*a)\n"
        "socket.socket = Watched\n"
        "sys.addaudithook(hook)\n"
        "async def main():\n"
        "    async with control_server(UnixListener(pathlib.Path(sys.argv[1])), None): pass\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert done.stdout.splitlines()[0] == "bind 0o600"


@pytest.mark.parametrize(
    ("target", "status", "error"),
    [
        ("/v1/route?address=nonsense", 400, "address='nonsense' is not an IP address"),
        ("/v1/route?address=fe80::1%25eth0", 400, "address='fe80::1%eth0' is not an IP address"),
        ("/v1/route", 400, "address='' is not an IP address"),
        ("/v1/peers?busiest=0", 400, "ask for /v1/peers?busiest=20&by=KEY, KEY one of bytes, "),
        ("/v1/peers?busiest=12345", 400, "ask for /v1/peers?busiest=20&by=KEY"),
        ("/v1/peers?busiest=5&by=heard", 400, "ask for /v1/peers?busiest=20&by=KEY"),
        ("/v1/nothing", 404, "GET /v1/nothing: Not Found"),
        ("/v1/route?address=10.1.0.1", 503, "no network configuration yet"),
        ("/v1/route?address=10.1.0.2", 500, "internal error: see the agent's log"),
    ],
)
async def test_whatever_goes_wrong_is_one_line_of_json(path: Path, target: str, status: int, error: str) -> None:
    async with control_server(UnixListener(path), Source()):
        code, body = await ask(raw, path, "GET", target)
    assert code == status
    assert body.startswith('{"error": "' + error)
    assert "\n" not in body


async def test_only_get_is_understood(path: Path) -> None:
    async with control_server(UnixListener(path), Source()):
        assert await ask(raw, path, "POST", "/v1/status") == (
            405,
            '{"error": "POST /v1/status: Method Not Allowed"}',
        )


async def test_the_agents_error_reaches_the_user_of_the_client(path: Path) -> None:
    async with control_server(UnixListener(path), Source()):
        with pytest.raises(FlannelError, match=r"^no network configuration yet$"):
            await ask(client.fetch_route, path, ip_address("10.1.0.1"))


async def test_a_second_agent_is_refused_by_pid_and_the_first_goes_on(path: Path) -> None:
    async with control_server(UnixListener(path), Source()):
        with pytest.raises(FlannelError) as caught:
            async with control_server(UnixListener(path), Source()):
                pass
        assert str(caught.value) == (
            f"another flannel-udp is running (pid {os.getpid()}, on {path}): stop it first, or take its place with "
            "--takeover; for another overlay beside it choose another --control-socket and --subnet-file"
        )
        assert await ask(client.fetch_status, path) == RUNNING


def test_the_socket_of_a_killed_agent_is_taken_over(path: Path) -> None:
    code = (
        "import asyncio, pathlib, sys\n"
        "from flannel_udp.admin.listener import UnixListener\n"
        "from flannel_udp.admin.control_socket import control_server\n"
        "async def main():\n"
        "    async with control_server(UnixListener(pathlib.Path(sys.argv[1])), None):\n"
        "        print('up', flush=True); await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as agent:
        try:
            assert agent.stdout is not None
            assert agent.stdout.readline() == "up\n"
        finally:
            agent.send_signal(signal.SIGKILL)
    assert path.is_socket()
    with pytest.raises(FlannelError, match="flannel-udp is not running"):
        client.fetch_status(path)

    async def second() -> Status:
        async with control_server(UnixListener(path), Source()):
            status: Status = await ask(client.fetch_status, path)
            return status

    assert uvloop.run(second()) == RUNNING  # the agent's own loop; the other tests are on asyncio's
    assert not path.exists()


async def test_of_agents_that_start_together_exactly_one_gets_a_stale_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    code = (
        "import asyncio, pathlib, sys\n"
        "from flannel_udp.admin import listener\n"
        "from flannel_udp.admin.listener import UnixListener\n"
        "from flannel_udp.admin.control_socket import control_server\n"
        "from flannel_udp.errors import FlannelError\n"
        "listener.LOCK_S = 60.0\n"  # each has its turn, on a busy machine, too
        "async def main():\n"
        "    print('here', flush=True); sys.stdin.readline()\n"
        "    async with control_server(UnixListener(pathlib.Path(sys.argv[1])), None):\n"
        "        print('won', flush=True); sys.stdin.readline()\n"
        "try: asyncio.run(main())\n"
        "except FlannelError as error: print(error, flush=True)\n"
    )
    agents = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    try:
        pipes = [(agent.stdin, agent.stdout) for agent in agents]
        for _, out in pipes:
            assert out is not None
            assert out.readline() == "here\n"
        for into, _ in pipes:
            assert into is not None
            into.write("go\n")
            into.flush()
        outcomes = [out.readline().split(" (")[0].strip() for _, out in pipes if out is not None]
        assert sorted(outcomes) == ["another flannel-udp is running"] * 3 + ["won"]
    finally:
        for agent in agents:
            agent.communicate(timeout=PATIENCE_S)
    assert not path.exists()


async def test_a_file_that_is_no_socket_is_left_alone(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(FlannelError, match=r"exists and is not a socket: remove it or choose another --control-socket"):
        async with control_server(UnixListener(path), Source()):
            pass
    assert path.read_text() == "precious"


async def test_a_socket_that_somebody_else_put_there_meanwhile_is_not_removed(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        async with control_server(UnixListener(path), Source()):
            path.unlink()
            other.bind(str(path))
        assert path.is_socket()


async def test_a_path_no_unix_socket_can_have_is_wrong_usage(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 120)
    with pytest.raises(UsageError, match=r"--control-socket=.*too long: choose a shorter one"):
        async with control_server(UnixListener(path), Source()):
            pass


async def test_a_directory_that_cannot_be_made_is_one_clear_line() -> None:
    with pytest.raises(FlannelError, match=r"^cannot make the control socket /proc/nowhere/agent.sock: "):
        async with control_server(UnixListener(Path("/proc/nowhere/agent.sock")), Source()):
            pass


async def test_closing_does_not_wait_for_idle_clients(path: Path) -> None:
    clock = asyncio.get_running_loop().time
    idle = client._UnixConnection(path, PATIENCE_S)
    try:
        async with control_server(UnixListener(path), Source()):
            await ask(idle.request, "GET", "/v1/status")
            await ask(lambda: idle.getresponse().read())
            began = clock()
        assert clock() - began < promised(1.5)
    finally:
        idle.close()


async def test_closing_does_not_wait_for_a_client_that_does_not_read(path: Path) -> None:
    class Large(Source):
        async def peers(self) -> AsyncIterator[list[PeerRow]]:
            for _ in range(500):
                yield [PEER] * 100

    clock = asyncio.get_running_loop().time
    stuck = client._UnixConnection(path, PATIENCE_S)
    try:
        async with control_server(UnixListener(path), Large()):
            await ask(stuck.request, "GET", "/v1/peers")
            await ask(stuck.sock.recv, 100)  # the answer has begun
            began = clock()
        assert clock() - began < promised(1.5)
    finally:
        stuck.close()


# The client


@pytest.mark.parametrize(
    ("fetch", "target"),
    [
        (client.fetch_routes, "/v1/routes"),
        (lambda path: list(client.follow_events(path)), "/v1/monitor"),
        (lambda path: client.fetch_trace(path, TRACED), "/v1/trace"),
    ],
)
def test_an_agent_that_does_not_know_the_request_is_of_an_older_version(
    fetch: Callable[[Path], object], target: str, path: Path
) -> None:
    answer = f'{{"error": "GET {target}: Not Found"}}'.encode()
    head = b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n" % len(answer)
    with answering(path, head + answer), pytest.raises(FlannelError) as caught:
        fetch(path)
    assert str(caught.value) == (
        f"the agent on {path} is of an older version, which does not know {target}: "
        "start the installed one in its place (flannel-udp --takeover)"
    )


def http_answer(status: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\xff" * 70_000,
        http_answer("200 OK", b"<html>"),
        http_answer("200 OK", b"\xff\xfe"),
        http_answer("200 OK", b"[1]"),
        http_answer("200 OK", b"[" * 100_000),
        http_answer("404 Not Found", b"[]"),
        http_answer("404 Not Found", b'{"error": 7}'),
        b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n{",
    ],
)
def test_garbage_is_not_an_agent(path: Path, answer: bytes) -> None:
    with answering(path, answer), pytest.raises(FlannelError) as caught:
        client.fetch_status(path)
    assert str(caught.value) == f"what answers on {path} is not a flannel-udp agent (or not of this version)"
    assert caught.value.exit_code == 1


def test_silence_ends_in_time(path: Path) -> None:
    with answering(path, b"", hangs=True), pytest.raises(FlannelError) as caught:
        client.fetch_status(path, timeout_s=0.2)
    assert str(caught.value) == f"the agent on {path} did not answer within 0.2 s"


def test_the_time_allowed_is_five_seconds() -> None:
    assert client.TIMEOUT_S == 5.0


def test_no_agent_is_one_clear_line(path: Path) -> None:
    with pytest.raises(FlannelError) as caught:
        client.fetch_peers(path)
    assert str(caught.value) == (
        f"flannel-udp is not running: nothing answers on {path} (start it, or name its --control-socket)"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to drop capabilities")
def test_somebody_else_is_told_whom_to_be(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    path = tmp_path / "agent.sock"
    code = (
        "import sys, pathlib; from flannel_udp.admin import client; from flannel_udp.errors import FlannelError\n"
        "try: client.fetch_status(pathlib.Path(sys.argv[1]))\n"
        "except FlannelError as error: print(error)\n"
    )
    with socket.socket(socket.AF_UNIX) as listener:
        os.fchmod(listener.fileno(), 0)
        listener.bind(str(path))
        listener.listen()
        # Root without capabilities is refused by a mode as anybody is, and can still enter every directory on the way.
        bare = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c", code, str(path)]
        done = subprocess.run(bare, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert done.stdout == f"permission denied on {path}: ask as the user that runs flannel-udp (root)\n"


@pytest.mark.parametrize("text", ["", "pod", "10.1.2.300", "fd00::1::", "fe80::1%eth0", "10.1.2.3/24", "10.1.2.3&x=1"])
def test_an_address_that_is_none_is_wrong_usage(text: str) -> None:
    with pytest.raises(UsageError, match="is not an IP address"):
        client.read_addresses(["10.1.16.5", text])


def test_the_client_imports_nothing_heavy() -> None:
    code = "import sys, flannel_udp.admin.client, flannel_udp.admin.show; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE_S
    ).stdout
    assert not {"h11", "asyncio", "rich", "pyroute2"} & {name.split(".")[0] for name in loaded.split()}
