"""`/v1/capture` over a real unix socket, and its client where agents end, hang, are old or talk nonsense."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from flannel_udp.admin import client
from flannel_udp.admin.captured import RECORD
from flannel_udp.admin.control_socket import control_server
from flannel_udp.admin.listener import UnixListener
from flannel_udp.cli.main import main
from flannel_udp.dataplane.capture import describe_records
from flannel_udp.errors import FlannelError
from flannel_udp.model import CaptureWish
from tests.support.patience import PATIENCE_S, promised
from tests.support.source import Source
from tests.support.stand_in import answering

HEAD = json.dumps({**describe_records(), "version": "1.2.3", "pid": 1}).encode() + b"\n"
PACKET = b"\x45" + bytes(23)


def record(time_ns: int) -> bytes:
    fields = (RECORD.size + len(PACKET), len(PACKET), time_ns, len(PACKET), 0, 1, 0, 0, 4, 0, 0, 0, 0, 0)
    return RECORD.pack(*fields, bytes(16), bytes(16)) + PACKET


def part(*times_ns: int) -> bytes:
    records = b"".join(record(time_ns) for time_ns in times_ns)
    counts = {"bytes": len(records), "taken": [len(times_ns), 0, 0, 0], "lost": [1, 0, 0, 0]}
    return json.dumps(counts).encode() + b"\n" + records


class Capturing(Source):
    """Says some parts, and then the same one for ever."""

    def __init__(self, *parts: bytes, last: bytes = b"") -> None:
        self.asked: list[tuple[CaptureWish, int]] = []
        self.closed = asyncio.Event()
        self._parts, self._last = parts, last

    async def capture(self, wish: CaptureWish, pid: int) -> AsyncGenerator[bytes, None]:
        self.asked.append((wish, pid))
        try:
            yield HEAD
            for each in self._parts:
                yield each
            while True:
                await asyncio.sleep(0.01)
                yield self._last
        finally:
            self.closed.set()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.sock"


def take(path: Path, wish: CaptureWish, n_parts: int) -> list[list[int]]:
    with client.open_capture(path, wish) as stream:
        parts = stream.parts()
        return [[packet.time_ns for packet in next(parts)] for _ in range(n_parts)]


async def test_what_is_wished_for_is_asked_and_a_part_is_in_the_order_of_its_times(path: Path) -> None:
    source = Capturing(part(3, 1, 2), part(), part(4))
    wish = CaptureWish(("in outer",), dropped=True, reasons=("no_route", "too_short"), every=10, snap_bytes=100)
    async with control_server(UnixListener(path), source):
        assert await asyncio.to_thread(take, path, wish, 3) == [[1, 2, 3], [], [4]]
        assert source.asked == [(wish, os.getpid())]
        await asyncio.wait_for(source.closed.wait(), PATIENCE_S)


async def test_it_ends_with_the_agent_or_when_it_is_stopped(path: Path) -> None:
    def follow(ready: threading.Event) -> tuple[int, list[int]]:
        with client.open_capture(path, CaptureWish()) as stream:
            streams.append(stream)
            n_packets = 0
            for packets in stream.parts():
                n_packets += len(packets)
                ready.set()
            return n_packets, stream.counts["lost"]

    streams: list[client.CaptureStream] = []
    source = Capturing(part(1, 2), last=part(3))
    async with control_server(UnixListener(path), source):
        ready = threading.Event()
        following = asyncio.create_task(asyncio.to_thread(follow, ready))
        await asyncio.to_thread(ready.wait, PATIENCE_S)
        streams[0].stop()
        n_packets, lost = await asyncio.wait_for(following, PATIENCE_S)
        assert n_packets >= 2
        assert lost == [1, 0, 0, 0]
        ready = threading.Event()
        following = asyncio.create_task(asyncio.to_thread(follow, ready))
        await asyncio.to_thread(ready.wait, PATIENCE_S)
    await asyncio.wait_for(following, PATIENCE_S)


async def test_who_asks_for_the_head_alone_captures_nothing_any_more(path: Path) -> None:
    source = Capturing(last=part(1))
    async with control_server(UnixListener(path), source):
        connection = client._UnixConnection(path, PATIENCE_S)
        await asyncio.to_thread(connection.request, "HEAD", "/v1/capture")
        assert (await asyncio.to_thread(connection.getresponse)).status == 200
        await asyncio.wait_for(source.closed.wait(), PATIENCE_S)
        connection.close()


async def test_who_stands_still_does_not_hold_up_the_agents_end(path: Path) -> None:
    source = Capturing(last=part(*range(1_000)))
    stuck = client._UnixConnection(path, 5.0)
    try:
        async with control_server(UnixListener(path), source):
            await asyncio.to_thread(stuck.request, "GET", "/v1/capture")
            await asyncio.sleep(0.5)
            began = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - began < promised(1.5)
        assert source.closed.is_set()
    finally:
        stuck.close()


async def test_a_question_that_makes_no_sense_and_a_capture_that_cannot_be_are_told_in_a_line(path: Path) -> None:
    async with control_server(UnixListener(path), Source()):
        with pytest.raises(FlannelError, match=r"^there are no packets yet: running$"):
            await asyncio.to_thread(take, path, CaptureWish(), 1)
        with pytest.raises(FlannelError, match="every='0' is not a whole number"):
            await asyncio.to_thread(take, path, CaptureWish(every=0), 1)


OK = b"HTTP/1.1 200 OK\r\n\r\n"
NOT_FOUND = b'HTTP/1.1 404 Not Found\r\n\r\n{"error": "GET /v1/capture: Not Found"}'


def test_an_agent_of_an_older_version_is_named_as_such(path: Path) -> None:
    with (
        answering(path, NOT_FOUND),
        pytest.raises(FlannelError, match="older version, which does not know /v1/c"),
    ):
        take(path, CaptureWish(), 1)


@pytest.mark.parametrize(
    "answer", [b"{}\n", b"hello\n", b"", HEAD + b"{}\n", HEAD + b'{"bytes": 3}\nabc', HEAD + b"[]\n"]
)
def test_nonsense_is_a_line_that_says_so(path: Path, answer: bytes) -> None:
    with answering(path, OK + answer), pytest.raises(FlannelError, match="is not a flannel-udp agent"):
        take(path, CaptureWish(), 1)


def test_a_part_that_is_cut_short_is_the_end(path: Path) -> None:
    answer = OK + HEAD + part(1) + part(2, 3)[:-10]
    with answering(path, answer), client.open_capture(path, CaptureWish()) as stream:
        assert [len(packets) for packets in stream.parts()] == [1]


def test_an_agent_that_hangs_is_told_of(path: Path) -> None:
    with answering(path, OK + HEAD + part(1), hangs=True), client.open_capture(path, CaptureWish()) as stream:
        parts = stream.parts()
        next(parts)
        assert stream._connected.gettimeout() == client.TIMEOUT_S
        stream._connected.settimeout(0.2)  # not before: what is said is waited for on a busy machine, too
        with pytest.raises(FlannelError, match=r"says nothing any more, 5 s long$"):
            next(parts)


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--reason=no_rout", "'no_rout' is no reason to drop a packet: did you mean no_route?"),
        ("--reason=xyzzy", "'xyzzy' is no reason to drop a packet: they are in docs/metrics.md"),
        ("--proto=tpc", "or a number from 0 to 255: did you mean tcp?"),
        ("--at=outre", ": did you mean outer?"),
        ("--sample=1:10", "'1:10' is no share such as 1/100"),
        ("--for=soon", "'soon' is no time such as 30s, 5m or 1h"),
        ("--for=0", "'0' is no time such as 30s, 5m or 1h"),
        ("--snaplen=10", "'10' is not a whole number from 64 to 262144"),
        ("--count=0", "'0' is not a whole number of at least 1"),
        ("--peer=h2", "'h2' is not an IP address"),
        ("--subnet=10.1.1.1/24", "'10.1.1.1/24' is not a network such as 10.1.0.0/16"),
    ],
)
def test_a_flag_that_makes_no_sense_is_one_line(flag: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["capture", flag]) == 2
    done = capsys.readouterr()
    assert (done.out, len(done.err.splitlines())) == ("", 1)
    assert told in done.err


def test_a_terminal_gets_no_file() -> None:
    ours, theirs = pty.openpty()
    try:
        argv = [sys.executable, "-m", "flannel_udp", "capture", "-w", "-"]
        done = subprocess.run(argv, stdout=theirs, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 2
    assert "standard output is a terminal" in done.stderr
