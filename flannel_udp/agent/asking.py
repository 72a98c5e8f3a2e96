"""Asks the kernel, while we forward, what it does with overlay packets, and notes what is wrong.

It is asked at news of the kernel, when peers changed, and every `LOOK_EVERY_S` seconds; what is found is noted once a
second look finds it, too, and nothing was put right meanwhile: what upkeep is at is no degradation.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

from flannel_udp.agent.state import AgentState, Rooms
from flannel_udp.backoff.said_once import SaidOnce
from flannel_udp.errors import FlannelError
from flannel_udp.host.lookup.cut_off import Need, resolve, resolvers
from flannel_udp.host.lookup.look import CUT_SHORT, Findings, Look
from flannel_udp.host.lookup.news import News
from flannel_udp.levels import QUESTIONS
from flannel_udp.model import Prefix
from flannel_udp.options import Options
from flannel_udp.registry.servers import servers_of

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 30.0
RESOLVE_EVERY_S = 30.0
ILL_EVERY_S = 5.0
"""As long as something is wrong: the kernel reports no routes that go with their device."""
SETTLE_S = 0.1
"""News come in flocks."""
CONFIRM_S = 0.5
CONFIRMATIONS_MAX = 6
"""Who undoes our repairs all the time keeps no fault from being told for longer."""
REST_S = 1.0
"""The shortest time between two looks; it grows with what they take, so that they are 1/20 of the time at most."""


async def needs_of(options: Options) -> list[Need]:
    """Return what the agent itself talks to, as far as that is known just now. Raises `FlannelError`."""
    servers = servers_of(options)
    found = await asyncio.gather(*(resolve(server.what, server.host) for server in servers))
    return [need for needs in found for need in needs] + resolvers(vital=any(server.is_name for server in servers))


async def confirmed(known: Findings, ask: Callable[[], Awaitable[Findings]], n_repairs: Callable[[], int]) -> Findings:
    """Ask until that gives what is `known`, or the same twice with nothing put right between; return what it gave."""
    found = await ask()
    for _ in range(CONFIRMATIONS_MAX):
        if found == known:
            break
        former, repaired = found, n_repairs()
        await asyncio.sleep(CONFIRM_S)
        found = await ask()
        if found == former and n_repairs() == repaired:
            break
    return found


class Asking:
    """Asks about the packets of one family, that of `overlay`: `run` all the time; `wake` when peers changed."""

    def __init__(self, options: Options, state: AgentState, rooms: Rooms, overlay: Prefix) -> None:
        self._options = options
        self._state = state
        self._rooms = rooms
        self._overlay = overlay
        self._look = Look(overlay)
        self._woken = asyncio.Event()
        self._said = SaidOnce()
        self._found = Findings()
        self._needs: list[Need] = []
        self._resolve_at_s = 0.0
        self._took_s = 0.0  # of processor time, by the last look

    def wake(self) -> None:
        """Ask soon."""
        self._woken.set()

    async def run(self) -> None:
        """Ask until cancelled."""
        news = News(self._overlay, self.wake)
        try:
            while True:
                self._woken.clear()
                await self._attempt(news)
                await asyncio.sleep(max(REST_S, 20 * self._took_s))
                with suppress(TimeoutError):
                    # wait_for loses a cancellation before Python 3.12
                    async with asyncio.timeout(self._pause_s()):
                        await self._woken.wait()
                await asyncio.sleep(SETTLE_S)
        finally:
            news.close()

    def _pause_s(self) -> float:
        if not self._state.ready:
            return REST_S
        return LOOK_EVERY_S if self._found == Findings() else ILL_EVERY_S

    async def _attempt(self, news: News) -> None:
        """Look, and note what is wrong."""
        try:
            await self._resolve()
            upkeep = self._rooms.upkeep
            found = await confirmed(self._found, partial(self._ask, news), lambda: sum(upkeep.repairs.values()))
        except FlannelError as failed:
            if self._said.failed(str(failed)):
                logger.warning("%s", failed)
        else:
            self._said.worked()
            self._note(found)

    async def _resolve(self) -> None:
        if time.monotonic() >= self._resolve_at_s:
            self._needs = await needs_of(self._options)
            self._resolve_at_s = time.monotonic() + RESOLVE_EVERY_S

    async def _ask(self, news: News) -> Findings:
        """Return what is wrong; what is known already, while we do not forward."""
        lease, network, version = self._state.lease, self._rooms.network, self._overlay.version
        own = None if lease is None else lease.subnet.of(version)
        if lease is None or not self._state.ready:
            return self._found
        routes = news.take_routes()

        def ask() -> Findings:
            started_s = time.thread_time()
            try:
                return look()
            finally:
                self._took_s = time.thread_time() - started_s
                logger.log(QUESTIONS, "asked the kernel where packets go: %.1f ms of a processor", self._took_s * 1e3)

        def look() -> Findings:
            self._look.note_routes(routes)
            ways = network.ways(version)
            if own is None or ways is None:
                return Findings()
            ends = self._rooms.upkeep.external.of(version)
            return self._look.look(own, ways, self._needs, None if ends is None else ends.address)

        return await asyncio.to_thread(ask)

    def _note(self, found: Findings) -> None:
        if found.cut_short and not self._found.cut_short:
            logger.warning("%s", CUT_SHORT)
        self._found = found
        for source in ("forwarding", "routes", "cut_off"):
            self._state.conditions.note(source, getattr(found, source), version=self._overlay.version)
