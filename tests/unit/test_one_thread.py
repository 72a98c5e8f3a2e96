"""Calls that block, one after the other, in a thread that nobody has to wait for."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from flannel_udp.backend.cloud.one_thread import OneThread
from flannel_udp.errors import NoThread
from tests.support.patience import PATIENCE_S
from tests.support.refusals import NO_THREAD, refused


async def test_results_and_errors_come_back_and_one_call_is_made_at_a_time() -> None:
    thread, at_work, most = OneThread("test"), [0], [0]

    def work() -> int:
        at_work[0] += 1
        most[0] = max(most[0], at_work[0])
        time.sleep(0.01)
        at_work[0] -= 1
        return threading.get_ident()

    idents = await asyncio.gather(*(thread.run(work) for _ in range(5)))
    assert (len(set(idents)), most) == (1, [1])
    assert idents[0] != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        await thread.run(lambda: 1 / 0)
    thread.end()


def test_a_thread_that_is_refused_is_one_clear_line() -> None:
    async def make() -> None:
        with pytest.raises(NoThread, match=r"^cannot start the thread 'cloud check': can't start new thread: see "):
            OneThread("cloud check")

    refused([NO_THREAD], lambda: asyncio.run(make()))


async def test_who_is_cancelled_waits_for_nothing_and_what_had_not_begun_is_not_done() -> None:
    thread, stop, begun = OneThread("test"), threading.Event(), threading.Event()
    done: list[str] = []

    def long() -> None:
        begun.set()
        stop.wait(PATIENCE_S)
        done.append("long")

    first = asyncio.create_task(thread.run(long))
    second = asyncio.create_task(thread.run(lambda: done.append("second")))
    await asyncio.to_thread(begun.wait, PATIENCE_S)
    for task in (first, second):
        task.cancel()
    await asyncio.wait((first, second))
    assert done == []
    stop.set()
    await thread.run(lambda: done.append("third"))
    assert done == ["long", "third"]
    thread.end()


async def test_what_is_to_be_done_later_is_done_before_the_end() -> None:
    thread, done = OneThread("test"), threading.Event()
    thread.later(done.set)
    thread.end()
    assert await asyncio.to_thread(done.wait, PATIENCE_S)


def test_a_loop_that_is_closed_meanwhile_is_no_fault() -> None:
    stop, ended = threading.Event(), threading.Event()

    async def begin() -> None:
        thread, begun = OneThread("test"), threading.Event()

        def work() -> None:
            begun.set()
            stop.wait(PATIENCE_S)

        task = asyncio.create_task(thread.run(work))
        await asyncio.to_thread(begun.wait, PATIENCE_S)
        thread.later(ended.set)
        thread.end()
        task.cancel()
        await asyncio.wait((task,))

    asyncio.run(begin())
    stop.set()
    assert ended.wait(PATIENCE_S)
