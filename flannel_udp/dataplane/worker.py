"""One data thread: an engine on a uvloop loop of its own, so that it never waits for the control plane."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress

import uvloop

from flannel_udp._fastpath.engine import Engine

logger = logging.getLogger(__name__)

# How long the engine waits by itself, without the GIL, for the next packet before the loop does: a wake-up through the
# loop costs a round trip some 20 µs more.
LINGER_MS = 20


_JOIN_LOST = "the kernel refuses joined packets; they are written one by one, and a join is tried from time to time"
_LOST = {
    "udp-segment": "datagrams to a peer cannot be cut on its route; they leave one by one, a run is tried at times",
    "join-tcp": _JOIN_LOST,
    "join-udp": _JOIN_LOST,
}


class Worker:
    """Runs `engine` until it is asked to stop, spinning for `busy_poll_us` microseconds after a packet."""

    def __init__(self, engine: Engine, busy_poll_us: int) -> None:
        self._engine = engine
        self._busy_poll_us = busy_poll_us

    def start(self, on_fault: Callable[[], object]) -> None:
        """Start the thread, which calls `on_fault()` once when the TUN is lost (the engine's `tun_errno` says why)."""
        self._on_fault = on_fault
        self._in_use = self._rungs()
        self._said: set[tuple[str, bool]] = set()
        self._thread = threading.Thread(target=self._run, name="flannel-data", daemon=True)
        self._loop = uvloop.new_event_loop()
        self._loop.add_reader(self._engine.fileno(), self._poll)
        self._thread.start()

    def ask_to_stop(self) -> None:
        """Let the thread end, within 50 ms."""
        self._loop.call_soon_threadsafe(self._loop.stop)

    def join(self) -> None:
        """Wait for the thread's end; then the engine may be changed or closed, or the worker started again."""
        self._thread.join()
        self._loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.remove_reader(self._engine.fileno())

    def _poll(self) -> None:
        faulty = self._engine.tun_errno
        self._engine.poll(LINGER_MS, self._busy_poll_us)
        if self._engine.tun_errno and not faulty:
            self._on_fault()
        if (in_use := self._rungs()) != self._in_use:
            self._say_what_changed(in_use)
            self._in_use = in_use

    def _rungs(self) -> frozenset[str]:
        """Return which of the offloads that may be refused at run time are in use."""
        engine = self._engine
        in_use = {"udp-segment": engine.segments, "join-tcp": engine.joins_tcp, "join-udp": engine.joins_udp}
        return frozenset(name for name, on in in_use.items() if on)

    def _say_what_changed(self, in_use: frozenset[str]) -> None:
        """Log what is lost or back, once each: what comes and goes all the time is in `status` and the counters."""
        changes = {(name, name in in_use) for name in self._in_use ^ in_use} - self._said
        for name, back in sorted(changes):
            if back:
                logger.info("%s is used again", name)
            else:
                logger.warning("%s is refused: %s", name, _LOST[name])
        self._said |= changes

    def probe(self) -> Future[None]:
        """Return what is done as soon as the running thread has come round to it."""
        answered: Future[None] = Future()
        with suppress(RuntimeError):  # the loop is closed: nobody answers
            self._loop.call_soon_threadsafe(answered.set_result, None)
        return answered
