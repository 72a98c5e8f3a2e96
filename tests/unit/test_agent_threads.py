"""An agent has its threads from the start: where none can be made later on, it goes on as before."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from flannel_udp.agent.run import N_THREADS, started_pool
from flannel_udp.errors import NoThread
from tests.support.refusals import NO_THREAD, refused


def test_what_blocks_goes_on_at_once_in_all_threads_though_no_more_can_be_made() -> None:
    pool = started_pool()

    def run() -> None:
        loop, met = asyncio.new_event_loop(), threading.Barrier(N_THREADS)
        loop.set_default_executor(pool)

        async def work() -> None:
            await asyncio.gather(*(asyncio.to_thread(met.wait) for _ in range(N_THREADS)))

        loop.run_until_complete(work())
        loop.close()

    refused([NO_THREAD], run)
    pool.shutdown()


def test_an_agent_that_may_have_no_threads_says_so_at_its_start() -> None:
    def start() -> None:
        with pytest.raises(NoThread, match=r"^cannot start 8 threads: can't start new thread: see TasksMax="):
            started_pool()

    refused([NO_THREAD], start)


def test_threads_that_started_before_one_was_refused_end_again(monkeypatch: pytest.MonkeyPatch) -> None:
    submit, before = ThreadPoolExecutor.submit, set(threading.enumerate())
    made: list[Future[int]] = []

    def submit_some(self: ThreadPoolExecutor, work: Callable[[], int]) -> Future[int]:
        if len(made) == 3:
            raise RuntimeError("can't start new thread")
        made.append(submit(self, work))
        return made[-1]

    monkeypatch.setattr(ThreadPoolExecutor, "submit", submit_some)
    with pytest.raises(NoThread, match=f"^cannot start {N_THREADS} threads"):
        started_pool()
    for thread in set(threading.enumerate()) - before:
        thread.join()
