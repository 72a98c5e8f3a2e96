"""Read a list of nodes while it comes, a node a step: 100 MB of it read at once would stop everything else for seconds.

A node object has 10 to 20 kB, of which we keep some hundred bytes.
"""

from __future__ import annotations

import asyncio
import codecs
import json
import re
from collections.abc import AsyncIterator, Callable

from flannel_udp.registry.kube.nodes import KubeNode, parse_node

MAX_VALUE_CHARS = 4 * 1024 * 1024
"""An object in etcd has at most 1.5 MB."""

_BLANKS = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


async def read_node_list(parts: AsyncIterator[bytes], take: Callable[[KubeNode], None]) -> tuple[str, str]:
    """Hand every node to `take`; return the list's resourceVersion, and what to ask for the next part with, if any.

    Raises `ValueError` for what is no list of nodes, also if it ends early.
    """
    text = _Text(parts)
    metadata: dict[str, object] = {}
    await text.expect("{")
    while True:
        name = await text.value()
        await text.expect(":")
        if name == "items" and await text.peek() == "[":
            await _read_items(text, take)
        else:
            value = await text.value()
            if name == "metadata" and isinstance(value, dict):
                metadata = value
        if await text.expect(",}") == "}":
            break
    version = metadata.get("resourceVersion")
    if not isinstance(version, str):
        raise ValueError("it has no resourceVersion")
    return version, str(metadata.get("continue") or "")


async def _read_items(text: _Text, take: Callable[[KubeNode], None]) -> None:
    await text.expect("[")
    if await text.peek() == "]":
        await text.expect("]")
        return
    while True:
        take(parse_node(await text.value()))
        await asyncio.sleep(0)  # others have their turn
        if await text.expect(",]") == "]":
            return


class _Text:
    """What came and was not read yet, one JSON value or sign after another."""

    def __init__(self, parts: AsyncIterator[bytes]) -> None:
        self._parts = parts
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._text = ""
        self._at = 0
        self._ended = False

    async def peek(self) -> str:
        """Return the next sign that is no blank, without taking it."""
        while True:
            blanks = _BLANKS.match(self._text, self._at)
            self._at = blanks.end() if blanks else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            await self._more()

    async def expect(self, signs: str) -> str:
        """Take one of these signs."""
        sign = await self.peek()
        if sign not in signs:
            raise ValueError(f"there is {sign!r} in place of one of {signs!r}")
        self._at += 1
        return sign

    async def value(self) -> object:
        """Take a whole JSON value."""
        await self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except RecursionError:
                raise ValueError("it is nested too deep") from None
            except ValueError:
                await self._more()  # it goes on, or will never be one
                continue
            if end == len(self._text) and not isinstance(value, dict | list | str):
                await self._more()  # a number may go on
                continue
            self._at = end
            return value

    async def _more(self) -> None:
        """Have twice as much to read, so that a long value is not tried again with every part that comes."""
        unread = [self._text[self._at :]]
        had, have = len(unread[0]), len(unread[0])
        if had > MAX_VALUE_CHARS:
            raise ValueError("a value in it is longer than any node")
        while have < 2 * had + 1:
            part = await anext(self._parts, None)
            if part is None:
                if self._ended or have == had:
                    raise ValueError("it ends early")
                self._ended = True
                break
            unread.append(self._decode(part))
            have += len(unread[-1])
        self._text, self._at = "".join(unread), 0
