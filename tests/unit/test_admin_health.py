"""/healthz and /readyz over real TCP on loopback."""

from __future__ import annotations

import asyncio
import http.client
import logging
import os
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
import uvloop

from flannel_udp.admin import health
from flannel_udp.admin.health import health_server, open_health_listener
from flannel_udp.admin.http_server import Limits
from flannel_udp.admin.shapes import Status
from flannel_udp.errors import FlannelError, UsageError
from flannel_udp.lab.etcd_server import free_port
from tests.support.patience import PATIENCE_S, promised
from tests.support.source import Told
from tests.support.status import RUNNING, WAITING

AGENT = Told(WAITING)
CHUNKED = (b"POST /readyz", b"GET /healthz", b"GET /nothing")


@pytest.fixture
def port() -> int:
    return free_port("127.0.0.1")


def get(port: int, target: str, method: str = "GET", ip: str = "127.0.0.1") -> int:
    connection = http.client.HTTPConnection(ip, port, timeout=PATIENCE_S)
    try:
        connection.request(method, target)
        return connection.getresponse().status
    finally:
        connection.close()


def text_of_readyz(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().read().decode()
    finally:
        connection.close()


async def test_healthy_at_once_and_ready_when_ready(port: int, caplog: pytest.LogCaptureFixture) -> None:
    agent = Told(WAITING)
    with caplog.at_level(logging.INFO):
        async with health_server(open_health_listener("127.0.0.1", port), agent):
            assert await asyncio.to_thread(get, port, "/healthz") == 200
            assert await asyncio.to_thread(get, port, "/readyz") == 503
            agent.now = RUNNING
            assert await asyncio.to_thread(get, port, "/readyz") == 200
            assert await asyncio.to_thread(get, port, "/readyz", "HEAD") == 200
            assert await asyncio.to_thread(get, port, "/readyz", "POST") == 405
            assert await asyncio.to_thread(get, port, "/") == 404
    assert not [record for record in caplog.records if record.name.startswith("flannel_udp")]


@pytest.mark.parametrize(
    "head",
    [b"GET /metrics HTTP/1.1\r\nHost\r\n\r\n", b"GET /%s HTTP/1.1\r\n\r\n" % (b"x" * 9_000), b"no HTTP\r\n\r\n"]
    + [b"%s HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" % line for line in CHUNKED],
    ids=["header", "long", "line", "chunk", "chunk-not-read", "chunk-of-nothing"],
)
async def test_a_request_that_is_no_http_is_no_error_of_ours(
    port: int, head: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        async with health_server(open_health_listener("127.0.0.1", port), AGENT):
            await asyncio.to_thread(get, port, "/healthz")
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head)
            assert (await asyncio.wait_for(reader.read(), PATIENCE_S)).startswith(b"HTTP/1.")
            writer.close()
            await asyncio.to_thread(get, port, "/healthz")
    assert not [record for record in caplog.records if record.name.startswith("flannel_udp")]


async def test_who_asks_for_everything_hears_of_it(port: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        async with health_server(open_health_listener("127.0.0.1", port), AGENT):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /metrics HTTP/1.1\r\nHost\r\n\r\n")
            await asyncio.wait_for(reader.read(), PATIENCE_S)
            writer.close()
    (told,) = (record for record in caplog.records if record.name == "flannel_udp.admin.http_server")
    assert told.levelno == logging.DEBUG


async def test_a_fault_of_our_own_stays_an_error(port: int, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Told):
        def status(self) -> Status:
            raise ValueError("a fault of ours")

    async with health_server(open_health_listener("127.0.0.1", port), Broken(WAITING)):
        assert await asyncio.to_thread(get, port, "/readyz") == 500
    (told,) = (record for record in caplog.records if record.name == "flannel_udp.admin.http_server")
    assert told.levelno == logging.ERROR


async def test_readyz_says_what_is_in_the_way_also_of_an_agent_that_is_ready(port: int) -> None:
    agent = Told(WAITING)
    async with health_server(open_health_listener("127.0.0.1", port), agent):
        assert await asyncio.to_thread(text_of_readyz, port) == "not ready: waiting for configuration\n"
        agent.now = RUNNING
        assert await asyncio.to_thread(text_of_readyz, port) == "ok\n"
        agent.now = {**RUNNING, "problems": ["the cable is cut", "the cat sleeps"], "degraded": ["host"]}
        assert await asyncio.to_thread(text_of_readyz, port) == "degraded: the cable is cut\ndegraded: the cat sleeps\n"


async def test_afterwards_the_port_is_free_again(port: int) -> None:
    for _ in range(2):
        async with health_server(open_health_listener("127.0.0.1", port), AGENT):
            assert await asyncio.to_thread(get, port, "/healthz") == 200
    with pytest.raises(ConnectionRefusedError):
        await asyncio.to_thread(get, port, "/healthz")


async def test_closing_does_not_wait_for_idle_clients(port: int) -> None:
    clock = asyncio.get_running_loop().time
    idle = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        async with health_server(open_health_listener("127.0.0.1", port), AGENT):
            await asyncio.to_thread(idle.request, "GET", "/healthz")
            await asyncio.to_thread(lambda: idle.getresponse().read())
            began = clock()
        assert clock() - began < promised(1.5)
    finally:
        idle.close()


async def test_who_has_asked_and_asks_no_more_is_hung_up_on(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "LIMITS", Limits(idle_s=0.1))
    idle = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    async with health_server(open_health_listener("127.0.0.1", port), AGENT):
        await asyncio.to_thread(idle.request, "GET", "/healthz")
        await asyncio.to_thread(lambda: idle.getresponse().read())
        assert await asyncio.to_thread(idle.sock.recv, 1) == b""
    idle.close()


async def test_connections_have_a_limit_beyond_which_the_oldest_ones_go(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "LIMITS", Limits(connections=3))
    async with health_server(open_health_listener("127.0.0.1", port), AGENT):
        with ExitStack() as opened:
            silent = []
            for _ in range(5):
                sock = opened.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE_S))
                for _ in range(5):  # turns of the loop, which lets it in
                    await asyncio.sleep(0)
                silent.append(sock)
            for sock in silent[:2]:
                assert await asyncio.to_thread(sock.recv, 1) == b""
            for sock in silent[2:]:
                sock.setblocking(False)
                with pytest.raises(BlockingIOError):
                    sock.recv(1)
            assert await asyncio.to_thread(get, port, "/healthz") == 200


async def test_who_reads_no_answer_goes_all_the_same(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def n_descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    monkeypatch.setattr(health, "LIMITS", Limits(connections=1))
    async with health_server(open_health_listener("127.0.0.1", port), AGENT):
        before = n_descriptors()
        with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as deaf:
            await asyncio.to_thread(deaf.sendall, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 5_000)  # some 30 MB
            async with asyncio.timeout(PATIENCE_S):
                while n_descriptors() < before + 2:  # both ends
                    await asyncio.sleep(0.01)
            assert await asyncio.to_thread(get, port, "/healthz") == 200
            async with asyncio.timeout(PATIENCE_S):
                while n_descriptors() > before + 1:
                    await asyncio.sleep(0.01)


async def test_port_zero_listens_nowhere() -> None:
    def sockets() -> list[str]:
        links = Path("/proc/self/fd").iterdir()
        return sorted(str(link.readlink()) for link in links if link.is_symlink() and link.is_socket())

    before = sockets()
    async with health_server(open_health_listener("127.0.0.1", 0), AGENT):
        assert sockets() == before


def test_it_serves_on_the_agents_own_loop(port: int) -> None:
    async def serve() -> int:
        async with health_server(open_health_listener("127.0.0.1", port), Told(RUNNING)):
            return await asyncio.to_thread(get, port, "/readyz")

    assert uvloop.run(serve()) == 200


async def test_ipv6_works_too(port: int) -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 on this host")
    async with health_server(open_health_listener("::1", port), AGENT):
        assert await asyncio.to_thread(get, port, "/healthz", "GET", "::1") == 200


@pytest.mark.parametrize("ip", ["0.0.0.0", "::"])
async def test_all_addresses_are_those_of_both_families_as_in_go(port: int, ip: str) -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 on this host")
    async with health_server(open_health_listener(ip, port), AGENT):
        for asked in ("127.0.0.1", "::1"):
            assert await asyncio.to_thread(get, port, "/healthz", "GET", asked) == 200


async def test_all_addresses_are_those_of_ipv4_where_the_kernel_has_no_ipv6(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    async with health_server(open_health_listener("0.0.0.0", port), AGENT):
        assert await asyncio.to_thread(get, port, "/healthz") == 200


@pytest.mark.parametrize("ip", ["0.0.0.0", "::", "127.0.0.1"])
def test_what_another_agent_listened_on_is_listened_on_further(port: int, ip: str) -> None:
    former = open_health_listener(ip, port)
    assert former is not None
    inode = os.fstat(former.fileno()).st_ino
    listener = open_health_listener(ip, port, former.detach())
    assert listener is not None
    with listener:
        assert os.fstat(listener.fileno()).st_ino == inode


async def test_a_port_in_use_is_one_clear_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(FlannelError) as caught:
            async with health_server(open_health_listener("127.0.0.1", port), AGENT):
                pass
    assert str(caught.value) == (
        f"cannot serve health on 127.0.0.1 port {port}: Address already in use: "
        "choose another --healthz-ip or --healthz-port"
    )
    assert caught.value.exit_code == 1


async def test_an_address_of_another_host_is_one_clear_line(port: int) -> None:
    with pytest.raises(FlannelError, match="Cannot assign requested address: choose another --healthz-ip"):
        async with health_server(open_health_listener("203.0.113.1", port), AGENT):
            pass


@pytest.mark.parametrize(
    ("ip", "number", "named"),
    [
        ("", 80, "--healthz-ip=: not an IP"),
        ("localhost", 80, "--healthz-ip=localhost: not an IP address"),
        ("nonsense", 0, "--healthz-ip=nonsense"),
        ("127.0.0.1", -1, "--healthz-port=-1: not a port"),
        ("127.0.0.1", 65_536, "--healthz-port=65536: not a port, 0"),
    ],
)
async def test_what_can_be_no_address_or_port_is_wrong_usage(ip: str, number: int, named: str) -> None:
    with pytest.raises(UsageError) as caught:
        async with health_server(open_health_listener(ip, number), AGENT):
            pass
    assert str(caught.value).startswith(named)
