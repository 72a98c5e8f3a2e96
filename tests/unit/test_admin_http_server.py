"""What the agent's HTTP promises whoever asks: order, limits, and an end in time; over real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest

from flannel_udp.admin.http_server import Answer, Handler, Limits, Request, Server, Stream, routed
from tests.support.patience import PATIENCE_S

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def echo(request: Request) -> Answer:
    return Answer(f"{request.method} {request.path} {dict(request.query)} ".encode() + request.body)


def ticking(ended: asyncio.Event) -> Handler:
    """Return what answers without an end; when that is over it sets the event."""

    async def answer(_request: Request) -> Stream:
        async def parts() -> AsyncGenerator[bytes, None]:
            try:
                while True:
                    yield b"tick\n"
                    await asyncio.sleep(0.01)
            finally:
                ended.set()

        return Stream(parts(), "text/plain", endless=True)

    return answer


@asynccontextmanager
async def asked(
    handler: Handler, limits: Limits | None = None, headers: Mapping[str, str] | None = None
) -> AsyncIterator[Streams]:
    """Serve, and connect once."""
    server = Server(handler, limits, headers)
    listening = await server.listen(sock := socket.create_server(("127.0.0.1", 0)))
    reader, writer = await asyncio.open_connection(*sock.getsockname())
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield reader, writer
    finally:
        writer.close()
        listening.close()
        await server.close()


async def test_requests_in_a_row_are_answered_in_their_order_on_one_connection() -> None:
    async with asked(routed({"/a": echo, "/b c": echo}, {"/a": echo})) as (reader, writer):
        writer.write(
            b"GET /a?x=1&x=2&y= HTTP/1.1\r\nHost: h\r\n\r\nPOST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbody"
        )
        writer.write(b"HEAD /a HTTP/1.1\r\nHost: h\r\n\r\nGET /b%20c HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        told = (await reader.read()).decode()
    assert told.count("HTTP/1.1 200 OK\r\n") == 4
    for body in ("GET /a {'x': '1', 'y': ''} ", "POST /a {} body", "GET /b c {} "):
        assert body in told
    assert "HEAD /a" not in told


async def test_who_has_ended_its_half_is_answered_all_the_same() -> None:
    async with asked(routed({"/a": echo})) as (reader, writer):
        writer.write(b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n")
        writer.write_eof()
        assert b"GET /a" in await reader.read()


async def test_an_answer_without_an_end_ends_when_its_reader_goes() -> None:
    ended = asyncio.Event()
    async with asked(routed({"/a": ticking(ended)})) as (reader, writer):
        writer.write(b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n")
        await reader.readuntil(b"tick\n")
        writer.close()
        await ended.wait()


async def test_the_end_of_the_server_ends_such_an_answer_without_its_last_chunk() -> None:
    ended = asyncio.Event()
    async with asked(routed({"/a": ticking(ended)})) as (reader, writer):
        writer.write(b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n")
        await reader.readuntil(b"tick\n")
    assert ended.is_set()
    assert not (await reader.read()).endswith(b"0\r\n\r\n")


async def test_a_client_of_http_1_0_gets_parts_until_the_connection_ends() -> None:
    async def three(_request: Request) -> Stream:
        async def parts() -> AsyncGenerator[bytes, None]:
            for part in (b"one ", b"", b"two ", b"three"):
                yield part

        return Stream(parts(), "text/plain")

    async with asked(routed({"/a": three})) as (reader, writer):
        writer.write(b"GET /a HTTP/1.0\r\n\r\n")
        assert (await reader.read()).endswith(b"\r\n\r\none two three")


async def test_what_fails_amid_an_answer_is_no_whole_answer_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def failing(_request: Request) -> Stream:
        async def parts() -> AsyncGenerator[bytes, None]:
            yield b"one"
            raise ValueError("a fault of ours")

        return Stream(parts(), "text/plain")

    async with asked(routed({"/a": failing})) as (reader, writer):
        writer.write(b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n")
        told = await reader.read()
    assert b"one" in told
    assert caplog.messages == ["an answer failed amid its parts"]
    assert not told.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 2000000\r\n\r\n" + bytes(2_000_000), 413),
        (b"GET /a HTTP/1.1\r\nHost: h\r\n" + b"x: y\r\n" * 3_000 + b"\r\n", 431),
        (b"GET /a HTTP/1.1\r\n\r\n", 400),
        (b"GET /a HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01", 400),
    ],
    ids=["body", "head", "no host", "two lengths", "TLS"],
)
async def test_what_is_too_large_or_no_http_is_answered_and_ends_the_connection(request_: bytes, status: int) -> None:
    async with asked(routed({"/a": echo}, {"/a": echo}), headers={"Who": "we"}) as (reader, writer):
        writer.write(request_ + b"\r\n\r\n")
        told = await reader.read()
    assert told.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"\r\nWho: we\r\n" in told


async def test_a_request_that_does_not_go_on_is_given_up() -> None:
    async with asked(routed({"/a": echo}), Limits(idle_s=0.1)) as (reader, writer):
        writer.write(b"GET /a HTTP/1.1\r\nHo")
        assert await reader.read() == b""


async def test_who_waits_for_leave_to_send_a_body_gets_it() -> None:
    async with asked(routed({}, {"/a": echo})) as (reader, writer):
        writer.write(b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        writer.write(b"body")
        assert b" 200 OK" in await reader.readuntil(b"body")


async def test_the_methods_of_a_path_are_told() -> None:
    async with asked(routed({"/a": echo}, {"/b": echo})) as (reader, writer):
        writer.write(b"DELETE /a HTTP/1.1\r\nHost: h\r\n\r\nGET /b HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        told = (await reader.read()).lower()
    assert told.count(b" 405 method not allowed") == 2
    assert b"allow: get, head\r\n" in told
    assert b"allow: post\r\n" in told


async def test_a_connection_whose_answer_the_end_has_met_is_asked_nothing_more() -> None:
    met, answers = asyncio.Event(), 0

    async def answer(_request: Request) -> Answer:
        nonlocal answers
        answers += 1
        met.set()
        await asyncio.sleep(0.1)
        return Answer(b"")

    server = Server(answer, Limits(end_s=PATIENCE_S))
    listening = await server.listen(sock := socket.create_server(("127.0.0.1", 0)))
    reader, writer = await asyncio.open_connection(*sock.getsockname())
    try:
        writer.write(2 * b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n")
        await met.wait()
        listening.close()
        await server.close()
        told = await reader.read()
    finally:
        writer.close()
    assert (answers, told.count(b"HTTP/1.1 200 OK")) == (1, 1)


async def test_a_header_is_found_by_its_name_in_lower_case_and_the_first_one_counts() -> None:
    async def answer(request: Request) -> Answer:
        return Answer(request.headers["x-what"].encode())

    async with asked(answer) as (reader, writer):
        writer.write(b"GET /a HTTP/1.1\r\nHost: h\r\nX-What: this\r\nx-what: that\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).endswith(b"\r\n\r\nthis")
