"""Blocking work in a thread: its result comes back, and a cancellation ends it first, without a word."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from flannel_udp.handover.in_thread import in_thread


async def test_the_result_comes_back() -> None:
    assert await in_thread(lambda: 42, lambda: None) == 42


async def test_what_the_work_raises_comes_back() -> None:
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 / 0, lambda: None)


async def test_a_cancellation_ends_the_work_first_and_nothing_is_logged_of_how_it_ended() -> None:
    stop, ended = threading.Event(), threading.Event()
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reported.append(context))

    def work() -> None:
        stop.wait()
        ended.set()
        raise ValueError("cut short")

    task = asyncio.create_task(in_thread(work, stop.set))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
    await asyncio.sleep(0)
    assert reported == []
