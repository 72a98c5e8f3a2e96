"""One data thread: engines on a uvloop loop of its own, so that it never waits for the control plane."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue

import uvloop

from flannel_udp._fastpath.engine import Engine
from flannel_udp.dataplane.lanes import LANES
from flannel_udp.errors import FlannelError, NoThread
from flannel_udp.options import DataplaneOptions

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


AUTO_WORKERS_MAX = LANES
"""What `--workers=auto` means at most. Each worker takes some 7 MiB of memory and eight descriptors, of which a process
has 1,024 unless told otherwise, and no more lanes are shared out; the kernel gives flannel0 256 queues at most."""


def count_workers(options: DataplaneOptions) -> int:
    """Return how many workers the options mean."""
    return options.workers or min(len(os.sched_getaffinity(0)), AUTO_WORKERS_MAX)


class Worker:
    """Runs the engines of one TUN queue until it is asked to stop, spinning for `busy_poll_us` µs after a packet.

    The first one is polled, and moves the packets of a second one, too.
    """

    def __init__(self, engines: Sequence[Engine], busy_poll_us: int) -> None:
        self.carry(engines)
        self._busy_poll_us = busy_poll_us
        # From the first start until `close`, as is the thread: a restart needs no descriptors, and no new thread.
        self._loop: uvloop.Loop | None = None
        self._thread: threading.Thread | None = None
        self._turns: SimpleQueue[bool] = SimpleQueue()  # what the thread is to do next: run the loop, or end
        self._rests = threading.Event()

    def carry(self, engines: Sequence[Engine]) -> None:
        """Run these from the next start on."""
        self._engines, self._engine = engines, engines[0]

    def start(self, on_fault: Callable[[], object]) -> None:
        """Run in the thread, which calls `on_fault()` once when the TUN is lost (the engine's `tun_errno` says why).

        Raises `FlannelError`, the first time only.
        """
        if self._loop is None:
            try:
                self._loop = uvloop.new_event_loop()
            except OSError as error:
                raise FlannelError(f"cannot start a data thread: {error.strerror}") from error
        if self._thread is None:
            thread = threading.Thread(target=self._run, args=(self._loop,), name="flannel-data", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                raise NoThread("a data thread", error) from error
            self._thread = thread
        self._on_fault = on_fault
        self._in_use = self._rungs()
        self._said: set[tuple[str, bool]] = set()
        self._rests.clear()
        self._loop.add_reader(self._engine.fileno(), self._poll)
        self._turns.put(True)

    def ask_to_stop(self) -> None:
        """Let the thread rest, within 50 ms."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)

    def join(self) -> None:
        """Wait until the thread rests; then the engine may be changed, or the worker started again or closed."""
        self._rests.wait()

    def close(self) -> None:
        """End; the engine may be closed then."""
        if self._thread is not None:
            self._turns.put(False)
            self._thread.join()
        if self._loop is not None:
            self._loop.close()

    def _run(self, loop: uvloop.Loop) -> None:
        asyncio.set_event_loop(loop)
        while self._turns.get():
            try:
                loop.run_forever()
                loop.remove_reader(self._engine.fileno())
            finally:  # whatever ends it, nobody waits in vain
                self._rests.set()

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
        in_use = {
            "udp-segment": all(engine.segments for engine in self._engines),
            "join-tcp": all(engine.joins_tcp for engine in self._engines),
            "join-udp": all(engine.joins_udp for engine in self._engines),
        }
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
        assert self._loop is not None  # noqa: S101 - `start` made it
        with suppress(RuntimeError):  # the loop is closed: nobody answers
            self._loop.call_soon_threadsafe(answered.set_result, None)
        return answered
