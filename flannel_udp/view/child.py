"""The collector's other end: a child process that is asked line by line."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from flannel_udp.errors import FlannelError, UsageError

_LONGEST_LINE = 1 << 24
"""Bytes; a lab of 200 hosts with some pods needs a megabyte."""

_END_S = 10.0
"""For a command that is ended to undo what it has begun."""


class LabGone(FlannelError):
    """The lab was taken down."""


class Collector:
    """Asks one question after the other."""

    def __init__(self, process: Process, name: str) -> None:
        self._process, self._name = process, name
        self._turn = asyncio.Lock()
        self._asking = set[asyncio.Task[Mapping[str, Any]]]()
        self._answers = asyncio.Queue[Mapping[str, Any]]()
        self.ended = asyncio.create_task(self._read())
        """Done once the lab is gone (true), or the process has ended by itself (false)."""

    async def greeting(self) -> None:
        """Wait until it can be asked. Raises `FlannelError` where there is no such lab."""
        await self._next()

    async def ask(self, **question: object) -> Mapping[str, Any]:
        """Return the answer. Raises `LabGone`, and `FlannelError` for what it could not tell."""
        asking = asyncio.create_task(self._exchange(question))
        self._asking.add(asking)
        asking.add_done_callback(self._asking.discard)
        return await asyncio.shield(asking)  # who asks next must not get the answer to what nobody waits for any more

    async def _exchange(self, question: Mapping[str, object]) -> Mapping[str, Any]:
        async with self._turn:
            with suppress(ConnectionError):  # it has ended: so the answer says
                assert self._process.stdin is not None  # noqa: S101 - for mypy
                self._process.stdin.write(json.dumps(question).encode() + b"\n")
                await self._process.stdin.drain()
            return await self._next()

    async def _next(self) -> Mapping[str, Any]:
        answer = await self._answers.get()
        if "gone" in answer:
            self._answers.put_nowait(answer)  # for whoever asks next
            raise LabGone(f"the lab {self._name} is gone")
        if "error" in answer:
            raise (UsageError if answer.get("code") == UsageError.exit_code else FlannelError)(answer["error"])
        return answer

    async def _read(self) -> bool:
        assert self._process.stdout is not None  # noqa: S101 - for mypy
        while (line := await self._process.stdout.readline()) and "gone" not in (answer := json.loads(line)):
            self._answers.put_nowait(answer)
        self._answers.put_nowait({"gone": True})
        return bool(line)


@asynccontextmanager
async def collector(name: str) -> AsyncIterator[Collector]:
    """Have one for the lab of that name. Raises `FlannelError` where there is none."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "flannel_udp.view.collector", name),
        stdin=PIPE,
        stdout=PIPE,
        limit=_LONGEST_LINE,
        start_new_session=True,  # Ctrl-C is for the server, which ends it
    )
    one = Collector(process, name)
    try:
        await one.greeting()
        yield one
    finally:
        assert process.stdin is not None  # noqa: S101 - for mypy
        process.stdin.close()
        await process.wait()
        await one.ended


async def run(words: list[str]) -> tuple[int, str, str]:
    """Run `flannel-udp` with these words to its end; return exit code, standard output and standard error.

    Where a signal ends it, the exit code is 128 + the signal, as in a shell.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "flannel_udp", *words),
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
        start_new_session=True,
    )
    try:
        out, err = await process.communicate()
    except asyncio.CancelledError:
        process.terminate()
        try:
            async with asyncio.timeout(_END_S):
                await process.wait()
        except TimeoutError:  # it is stopped, say
            process.kill()
            await process.wait()
        raise
    code = process.returncode or 0
    return code if code >= 0 else 128 - code, out.decode(errors="replace"), err.decode(errors="replace")
