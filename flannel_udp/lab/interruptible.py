"""Signals that would end us while a lab is up: the first one ends what is done, but not what must be done whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from flannel_udp.interrupts import Interrupted

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _leave(number: int, _frame: FrameType | None) -> None:
    """Turn the first signal into an exception, so that the lab is taken down; ignore the next ones meanwhile."""
    for ignored in ENDING_SIGNALS:
        signal.signal(ignored, signal.SIG_IGN)
    raise Interrupted(number, _leave)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let what would end us raise instead, inside the block only, so that a lab is taken down first."""
    before = {number: signal.signal(number, _leave) for number in ENDING_SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let such signals wait until the block is done."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def undivided() -> Iterator[None]:
    """Let such signals be felt only after the block: for what starts a process, and writes down which it is.

    They are not blocked, as in `uninterrupted`: the process would begin with them blocked, and never feel them.
    """
    if threading.current_thread() is not threading.main_thread():  # the others are never interrupted
        yield
        return
    came: list[int] = []
    kept = {number: signal.getsignal(number) for number in ENDING_SIGNALS}
    for number, handler in kept.items():
        if handler is not signal.SIG_IGN:  # who ignores it lets the process ignore it
            signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
        for pending in came:
            signal.raise_signal(pending)
