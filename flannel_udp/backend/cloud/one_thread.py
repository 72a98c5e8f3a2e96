"""A thread of our own for calls that block for seconds, one after the other; who has stopped waiting is not held up.

asyncio's threads would be: a process does not end before they have.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

from flannel_udp.errors import NoThread

T = TypeVar("T")
_Work = tuple[Callable[[], Any], "asyncio.Future[Any]"]


class OneThread:
    """Runs what it is given, in turns; `end` it, and it is gone as soon as what it is at has come back.

    Raises `NoThread` where it cannot be started.
    """

    def __init__(self, name: str) -> None:
        self._waiting: SimpleQueue[_Work | None] = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        try:
            threading.Thread(target=self._work, name=name, daemon=True).start()
        except RuntimeError as error:
            raise NoThread(f"the thread {name!r}", error) from error

    async def run(self, work: Callable[[], T]) -> T:
        """Return what `work` returns, or raise what it raises. Cancelled, it goes on, and nobody hears what becomes."""
        future: asyncio.Future[T] = self._loop.create_future()
        self._waiting.put((work, future))
        return await future

    def later(self, work: Callable[[], object]) -> None:
        """Do this, which raises nothing, after all that came before; nobody waits."""
        self._waiting.put((work, self._loop.create_future()))

    def end(self) -> None:
        """Begin nothing more after all that came before."""
        self._waiting.put(None)

    def _work(self) -> None:
        while (item := self._waiting.get()) is not None:
            work, future = item
            if future.cancelled():
                continue
            try:
                result = work()
            except BaseException as error:
                self._tell(future, None, error)
            else:
                self._tell(future, result, None)

    def _tell(self, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        def tell() -> None:
            if future.cancelled():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        with suppress(RuntimeError):  # the loop is closed: the process ends
            self._loop.call_soon_threadsafe(tell)
