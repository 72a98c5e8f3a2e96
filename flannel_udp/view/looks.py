"""One look a second for all who watch, and none while nobody does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from time import monotonic
from typing import Any

from flannel_udp.errors import FlannelError

EACH_S = 1.0
Event = tuple[str, Any]
"""Its name, and what is told: ``look`` a `shapes.Look`, ``trouble`` and ``end`` a line of text."""


class Looks:
    """Has viewers, and looks for them by `look`; a slow look is followed by a pause of its own length at least."""

    def __init__(self, look: Callable[[], Awaitable[Any]]) -> None:
        self._look = look
        self._viewers: set[asyncio.Queue[Event]] = set()
        self._looking: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()

    async def watch(self) -> AsyncGenerator[Event]:
        """Yield what comes, the last thing only where somebody reads slowly, until `end`."""
        own = asyncio.Queue[Event](maxsize=1)
        self._viewers.add(own)
        self.hurry()
        if self._looking is None:
            self._looking = asyncio.create_task(self._look_on())
        try:
            while True:
                event = await own.get()
                yield event
                if event[0] == "end":
                    return
        finally:
            self._viewers.discard(own)
            if not self._viewers:
                await self._stop()

    def hurry(self) -> None:
        """Look at once: something has just been changed, or somebody has come."""
        self._hurry.set()

    async def end(self, why: str) -> None:
        """Tell all viewers that this was all, and why."""
        await self._stop()
        self._tell("end", why)

    async def _stop(self) -> None:
        looking, self._looking = self._looking, None  # at once: whoever comes meanwhile is looked for anew
        if looking is not None:
            looking.cancel()
            await asyncio.wait([looking])

    async def _look_on(self) -> None:
        while True:
            self._hurry.clear()
            began_s = monotonic()
            try:
                self._tell("look", await self._look())
            except FlannelError as error:
                self._tell("trouble", str(error))
            took_s = monotonic() - began_s
            try:
                async with asyncio.timeout(max(EACH_S - took_s, took_s)):  # wait_for loses a cancellation before 3.12
                    await self._hurry.wait()
            except TimeoutError:
                continue

    def _tell(self, name: str, what: Any) -> None:
        for viewer in self._viewers:
            if viewer.full():
                viewer.get_nowait()
            viewer.put_nowait((name, what))
