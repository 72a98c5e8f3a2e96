"""A machine that is busy with other things: waited for, for a while, and said in any case."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from flannel_udp.bench.cpu import ForeignWatch

logger = logging.getLogger("bench")

_LOOK_S = 1.0
"""How long others are watched before it is said that they are quiet."""


class Quiet:
    """Waits until others leave the processors alone, `wait_s` seconds in all its life; with 0 it never even looks.

    `max_foreign` is what is let pass, in percent of one core; `ours` are processes that are no others, with all that
    descend from them, beside this one.
    """

    def __init__(
        self,
        max_foreign: float,
        wait_s: float,
        ours: tuple[int, ...] = (),
        *,
        look: Callable[[tuple[int, ...]], float] | None = None,
    ) -> None:
        self.ours, self.wait_s = ours, wait_s
        self._max_foreign, self._left_s = max_foreign, wait_s
        self._look = look or _watch

    def wait(self) -> None:
        """Return once others are quiet, or the time is up."""
        waited = False
        while self._left_s > 0:
            foreign = self._look(self.ours)
            if foreign * 100 <= self._max_foreign:
                return
            self._left_s -= _LOOK_S
            if not waited:
                waited = True
                logger.info(
                    "others use %.0f %% of a core: waiting for at most %.0f s until they use no more than %g %%",
                    foreign * 100,
                    self._left_s,
                    self._max_foreign,
                )
        if waited:
            logger.info("others are still busy: going on; the samples that they disturb are rejected")


def _watch(ours: tuple[int, ...]) -> float:
    watch = ForeignWatch.start(ours)
    time.sleep(_LOOK_S)
    return watch.share()
