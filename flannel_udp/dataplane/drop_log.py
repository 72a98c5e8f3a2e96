"""Says in the log what is dropped: a line a minute and reason at most, with a packet for an example."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from flannel_udp.dataplane.drops import about
from flannel_udp.model import DroppedPacket

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
SAY_EVERY_S = 60.0
_PROTOCOLS = {1: "ICMP", 6: "TCP", 17: "UDP"}

Counts = Mapping[str, Mapping[str, int]]
"""Direction ("out", "in") → reason → packets dropped since the start."""


class DropLog:
    """Asks `counts()` and, where they have grown, `last()`, from now until `close`, on the running loop.

    `last()` returns the packets that were dropped last, by reason, the newest last.
    """

    def __init__(self, counts: Callable[[], Counts], last: Callable[[], Mapping[str, Sequence[DroppedPacket]]]) -> None:
        self._counts, self._last = counts, last
        self._said: Counter[tuple[str, str]] = Counter()  # direction, reason → packets that were spoken of
        self._said_at: dict[str, float] = {}  # reason → when
        self._loop = asyncio.get_running_loop()
        self._next = self._loop.call_later(LOOK_EVERY_S, self._look)

    def close(self) -> None:
        """Look no more."""
        self._next.cancel()

    def _look(self) -> None:
        self._next = self._loop.call_later(LOOK_EVERY_S, self._look)
        self.say(self._loop.time())

    def say(self, now_s: float) -> None:
        """Say what is due at `now_s`."""
        new: dict[str, Counter[str]] = {}  # reason → direction → packets
        for direction, drops in self._counts().items():
            for reason, count in drops.items():
                if count > self._said[direction, reason]:
                    new.setdefault(reason, Counter())[direction] = count - self._said[direction, reason]
        due = [reason for reason in new if now_s - self._said_at.get(reason, now_s - SAY_EVERY_S) >= SAY_EVERY_S]
        last = self._last() if due else {}
        for reason in due:
            self._said_at[reason] = now_s
            for direction, count in new[reason].items():
                self._said[direction, reason] += count
            _write(reason, new[reason], last.get(reason, ()))


def _write(reason: str, new: Counter[str], last: Sequence[DroppedPacket]) -> None:
    sentence, known = about(reason)
    level = max(known.level(direction) for direction in new)
    n = new.total()
    louder = [packet for packet in last if known.level(packet.direction) == level]  # of the two directions
    example = "".join(f"; the last one {describe(packet)}" for packet in (louder or last)[-1:])
    what = f"{n} packet{'s' if n > 1 else ''} dropped"
    logger.log(level, "%s (%s): %s%s; see: %s", what, reason, sentence, example, known.see)


def describe(packet: DroppedPacket) -> str:
    """Return a dropped packet in a clause: "came from 192.0.2.9: 10.1.16.2 > 10.1.15.3, UDP, 84 bytes"."""
    whence = "came from" if packet.direction == "in" else "was for"
    outer = "" if packet.outer is None else f"{whence} {packet.outer}: "
    if packet.source is None:
        kind = "no IP header" if packet.version is None else f"IP version {packet.version}"
        return f"{outer}{kind}, {packet.n_bytes} bytes"
    protocol = _PROTOCOLS.get(packet.protocol or 0, f"protocol {packet.protocol}")
    return f"{outer}{packet.source} > {packet.destination}, {protocol}, {packet.n_bytes} bytes"
