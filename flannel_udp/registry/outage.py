"""How a watch lives through an outage: back-off, a line for each reason that it has, one when it is over."""

from __future__ import annotations

import asyncio
import logging
import random
import time

from flannel_udp.backoff.delay import Backoff
from flannel_udp.backoff.said_once import SaidOnce
from flannel_udp.errors import RegistryError
from flannel_udp.registry import Tell

FIRST_DELAY_S = 0.1
LAST_DELAY_S = 2.0
REASONS_MAX = 10
"""So many reasons of one outage are lines of the log: some name what is another number each time."""


def keep_quiet(_trouble: RegistryError | None) -> None:
    """Be told of outages by the log only."""


class Outage:
    """The trouble one watch has with its store, if any; `tell` hears of it beside the log."""

    def __init__(self, logger: logging.Logger, tell: Tell = keep_quiet) -> None:
        self._logger = logger
        self._tell = tell
        self._began_s: float | None = None
        self._ended_s = time.monotonic()
        self._stands = False  # as `tell` was told
        self._present = SaidOnce()  # the reason that `tell` knows
        self._said: set[str] = set()  # those that the log has: one that comes back is no news
        self._backoff = Backoff(FIRST_DELAY_S, LAST_DELAY_S, random.Random())  # noqa: S311 - no secret

    async def wait(self, reason: RegistryError) -> None:
        """Note a failure and sleep before the next try: 0.1 s at first, doubling to 2 s."""
        if self._began_s is None:
            self._began_s = time.monotonic()
            self._stands = False
            # A store that works for a moment and fails again does not get the short delay back.
            if self._began_s - self._ended_s > LAST_DELAY_S:
                self._backoff.reset()
        self._note(reason)
        await asyncio.sleep(self._backoff.next_s())

    def _note(self, reason: RegistryError) -> None:
        text = str(reason)
        if self._present.failed(text):
            self._tell(reason)
        if text not in self._said and len(self._said) < REASONS_MAX:
            self._said.add(text)
            self._logger.warning("watching the subnets: %s; trying again until it works", text)

    def over(self) -> None:
        """Note that the watch stands."""
        if not self._stands:
            self._stands = True
            self._tell(None)
        if self._began_s is None:
            return
        self._ended_s = time.monotonic()
        self._logger.info("watching the subnets: works again after %.1f s", self._ended_s - self._began_s)
        self._began_s = None
        self._present.worked()
        self._said.clear()
