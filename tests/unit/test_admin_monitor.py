"""`/v1/monitor` over a real unix socket: readers that go, stand still or outlive the agent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from flannel_udp.admin import client
from flannel_udp.admin.control_socket import control_server
from flannel_udp.admin.listener import UnixListener
from flannel_udp.admin.shapes import Event
from flannel_udp.errors import FlannelError
from tests.support.patience import PATIENCE_S, promised
from tests.support.source import Source
from tests.support.status import EVENT, RUNNING


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.sock"


def read_lines(path: Path, count: int) -> list[Any]:
    events = client.follow_events(path)
    return [next(events) for _ in range(count)]


async def wait_until_closed(closed: asyncio.Event) -> None:
    await asyncio.wait_for(closed.wait(), PATIENCE_S)


class Busy(Source):
    """Something happens all the time; `closed` when nobody listens any more."""

    def __init__(self, pause_s: float = 0.0) -> None:
        super().__init__()
        self.closed = asyncio.Event()
        self.n_told = 0
        self._pause_s = pause_s

    async def events(self) -> AsyncGenerator[list[Event], None]:
        try:
            while True:
                self.n_told += 1
                yield [{**EVENT, "count": self.n_told}]
                await asyncio.sleep(self._pause_s)
        finally:
            self.closed.set()


async def test_events_arrive_as_they_come_and_a_reader_that_goes_away_is_noticed(path: Path) -> None:
    source = Busy()
    async with control_server(UnixListener(path), source):
        events = await asyncio.to_thread(read_lines, path, 3)
        assert [event["count"] for event in events] == [1, 2, 3]
        await wait_until_closed(source.closed)


async def test_a_reader_that_goes_away_while_nothing_happens_is_noticed(path: Path) -> None:
    class Quiet(Busy):
        async def events(self) -> AsyncGenerator[list[Event], None]:
            try:
                yield [EVENT]
                while True:
                    await asyncio.sleep(0.05)
                    yield []
            finally:
                self.closed.set()

    source = Quiet()
    async with control_server(UnixListener(path), source):
        await asyncio.to_thread(read_lines, path, 1)
        await wait_until_closed(source.closed)


async def test_a_reader_that_stands_still_holds_up_nobody_and_nothing_gathers(path: Path) -> None:
    source = Busy()
    stuck = client._UnixConnection(path, 5.0)
    try:
        async with control_server(UnixListener(path), source):
            await asyncio.to_thread(stuck.request, "GET", "/v1/monitor")
            before, now = -1, 0
            while before != now:  # until the sockets are full
                before = now
                await asyncio.sleep(0.2)
                now = source.n_told
            assert now < 100_000
            assert await asyncio.to_thread(client.fetch_status, path) == RUNNING
            began = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - began < promised(1.5)
        assert source.closed.is_set()
    finally:
        stuck.close()


async def test_what_is_told_ends_with_the_agent_and_does_not_hold_it_up(path: Path) -> None:
    source = Busy(pause_s=0.01)
    async with control_server(UnixListener(path), source):
        reading = asyncio.create_task(asyncio.to_thread(lambda: list(client.follow_events(path))))
        while source.n_told < 3:
            await asyncio.sleep(0.01)
        began = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - began < promised(1.5)
    assert len(await asyncio.wait_for(reading, PATIENCE_S)) >= 3


async def test_who_may_not_watch_is_told_why(path: Path) -> None:
    class Full(Source):
        async def events(self) -> AsyncGenerator[list[Event], None]:
            raise FlannelError("too many watch")
            yield []

    async with control_server(UnixListener(path), Full()):
        with pytest.raises(FlannelError, match=r"^too many watch$"):
            await asyncio.to_thread(read_lines, path, 1)
