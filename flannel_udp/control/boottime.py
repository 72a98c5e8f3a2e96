"""The clock that leases are counted by, and an alarm on it.

CLOCK_BOOTTIME never jumps and goes on while the machine is suspended, as the lease does. An event loop's own timers
stand still meanwhile (CLOCK_MONOTONIC), so they would go off too late by the length of the suspension.
"""

from __future__ import annotations

import asyncio
import ctypes
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

_TFD_TIMER_ABSTIME = 1  # linux/timerfd.h; the other two flags have the values of the ones for open(2)
_TFD_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK
_SOONEST_NS = 1  # an alarm at 0 would be none
LOOK_EVERY_S = 1.0
"""Without a timer of the kernel's, in seconds."""


class _Itimerspec(ctypes.Structure):
    """Two `struct timespec`: the interval of a periodic timer, which ours is not, and when it goes off."""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


# os.timerfd_create came with Python 3.13.
_libc = ctypes.CDLL(None, use_errno=True)


def now_s() -> float:
    """Return the seconds since boot, suspensions included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Alarm:
    """Calls `wake` on the running event loop when the time has come, at once if it came during a suspension.

    Where no descriptor is left for that it looks every `LOOK_EVERY_S`, and may be late by so much after a suspension.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._descriptor: int | None = None
        self._at_s = math.inf
        self._next_look: asyncio.TimerHandle | None = None

    def set(self, at_s: float | None) -> None:
        """Set the alarm to a time of `now_s`, in place of what it was set to; ``None`` means never."""
        self._at_s = math.inf if at_s is None else at_s
        if self._descriptor is None:
            self._look_later()
            return
        at_ns = 0 if self._at_s == math.inf else max(round(self._at_s * 1e9), _SOONEST_NS)
        spec = _Itimerspec(0, 0, *divmod(at_ns, 1_000_000_000))
        _check(_libc.timerfd_settime(self._descriptor, _TFD_TIMER_ABSTIME, ctypes.byref(spec), None))

    def __enter__(self) -> Self:
        with suppress(OSError):  # no descriptor is left
            self._descriptor = _check(_libc.timerfd_create(time.CLOCK_BOOTTIME, _TFD_FLAGS))
        if self._descriptor is not None:
            asyncio.get_running_loop().add_reader(self._descriptor, self._go_off)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.set(None)
        if self._descriptor is not None:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)

    def _look_later(self) -> None:
        if self._next_look is not None:
            self._next_look.cancel()
        if self._at_s < math.inf:
            wait_s = min(max(self._at_s - now_s(), 0.0), LOOK_EVERY_S)
            self._next_look = asyncio.get_running_loop().call_later(wait_s, self._look)

    def _look(self) -> None:
        if now_s() >= self._at_s:
            self._go_off()
        else:
            self._look_later()

    def _go_off(self) -> None:
        self.set(None)  # also makes the descriptor unreadable again
        self._wake()


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
