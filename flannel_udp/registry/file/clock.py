"""The clock that leases in a file end by, and what to do when it jumps, or is not that of the other hosts.

A lease says when it ends by the wall clock of the host that wrote it. Whoever judges by another clock takes what is in
use for free. So a jump of our own clock is believed only if it makes no less sense of what stands in the file, and a
host whose clock is off by more than a lease's life takes no lease: it would be over at once in the eyes of the others.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from flannel_udp.model import LEASE_TTL_S

logger = logging.getLogger(__name__)

STEP_S = 60.0
"""What a clock may be put right by between two looks without being asked why."""


class Clock:
    """The system's wall clock, less jumps that make nonsense of the leases."""

    def __init__(self) -> None:
        self._offset_s = _offset_s()  # of the wall clock from the one that never jumps
        self._doubted = False

    def now_s(self) -> float:
        """Return seconds since 1970."""
        return _boottime_s() + self._offset_s

    def look(self, expiries_s: Iterable[float]) -> None:
        """Follow the system's clock, unless it jumped and fewer of the leases that end then make sense by it."""
        offset_s = _offset_s()
        jump_s = offset_s - self._offset_s
        if abs(jump_s) > STEP_S:
            ends_s = tuple(expiries_s)
            now_s = _boottime_s()
            if _sensible(ends_s, now_s + offset_s) < _sensible(ends_s, now_s + self._offset_s):
                if not self._doubted:
                    self._doubted = True
                    logger.warning(
                        "the clock of this host jumped by %s, and by it the leases in the registry file make no sense: "
                        "going on by the former time; set the clock right (timedatectl)",
                        describe_span(jump_s),
                    )
                return
            logger.info("the clock of this host jumped by %s: leases end by the new time", describe_span(jump_s))
        elif self._doubted:
            logger.info("the clock of this host is right again")
        self._doubted, self._offset_s = False, offset_s


def folder_ahead_s(folder: Path) -> float | None:
    """Return how far ahead of ours the clock is that stamps files in the folder, a file server's perhaps.

    ``None`` where nothing can be written there. May block.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            before_s = time.time()
            file.write(b"?")
            file.flush()
            return Path(f"/proc/self/fd/{file.fileno()}").stat().st_mtime - before_s
    except OSError:
        return None


def describe_span(seconds: float) -> str:
    """Return a span of time for people: ``+2.0 days``, ``-3 min``."""
    for unit, name in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if abs(seconds) > 1.95 * unit:
            return f"{seconds / unit:+.1f} {name}"
    return f"{seconds:+.0f} s"


def _sensible(ends_s: Iterable[float], now_s: float) -> int:
    """Return how many leases are neither over nor longer than any is granted."""
    return sum(now_s < end_s <= now_s + LEASE_TTL_S + STEP_S for end_s in ends_s)


def _offset_s() -> float:
    return time.time() - _boottime_s()


def _boottime_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
