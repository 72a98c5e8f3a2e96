"""A connection that is replaced by a newer one while the old one may still be in use."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class _Lent(Generic[T]):
    def __init__(self, thing: T) -> None:
        self.thing = thing
        self.users = 0


class Replaceable(Generic[T]):
    """Lends the newest one; those before it are closed as soon as nobody uses them any more."""

    def __init__(self, first: T, close: Callable[[T], Awaitable[None]]) -> None:
        self._close = close
        self._newest = _Lent(first)
        self._given_up: set[_Lent[T]] = set()
        self._closing: set[asyncio.Future[None]] = set()

    def replace(self, by: T) -> None:
        """Lend this one from now on."""
        self._given_up.add(self._newest)
        self._newest = _Lent(by)
        self._sweep()

    @contextmanager
    def use(self) -> Iterator[T]:
        """Lend the newest one."""
        lent = self._newest
        lent.users += 1
        try:
            yield lent.thing
        finally:
            lent.users -= 1
            self._sweep()

    async def close(self) -> None:
        """Close all of them."""
        for lent in (self._newest, *self._given_up):
            await self._close(lent.thing)
        await asyncio.gather(*self._closing)

    def _sweep(self) -> None:
        for lent in [lent for lent in self._given_up if not lent.users]:
            self._given_up.remove(lent)
            closing = asyncio.ensure_future(self._close(lent.thing))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
