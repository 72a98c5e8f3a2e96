"""Blocking work in a thread, which has ended when whoever waits for it goes on, also when that task is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_thread(work: Callable[[], T], cut_short: Callable[[], object]) -> T:
    """Return what `work` returns; a task that is cancelled meanwhile calls `cut_short`, which makes `work` end soon."""
    working = asyncio.create_task(asyncio.to_thread(work))
    try:
        # Not shield: from Python 3.14 on that logs what the work ends with after a cancellation, traceback and all.
        await asyncio.wait((working,))
    except asyncio.CancelledError:
        cut_short()
        await asyncio.wait((working,))
        working.exception()  # or asyncio would say that nobody has asked for it
        raise
    return working.result()
