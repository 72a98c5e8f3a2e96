"""What became of the peers, for the log: a line each, unless there are more of them than anybody reads."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable

from flannel_udp.model import Delta

logger = logging.getLogger(__name__)

MAX_LINES = 10
"""More peers or warnings than this at once are logged as a summary."""
SPAN_S = 10.0
SPAN_LINES = 3 * MAX_LINES
"""What is logged within a span; what comes after that is summarised at its end."""


class PeerLog:
    """Writes deltas to the log; `count` tells how many peers there are, `news` hears of each delta as it is."""

    def __init__(self, count: Callable[[], int], news: Callable[[Delta], object] = lambda _delta: None) -> None:
        self._count = count
        self._news = news
        self._room = SPAN_LINES  # lines that may still be written before the span ends
        self._held: Counter[str] = Counter()  # what had no room, by kind
        self._span: asyncio.TimerHandle | None = None

    def write(self, delta: Delta) -> None:
        """Write a delta, or count what there is no room for until the span ends."""
        if not delta and not delta.warnings:
            return
        self._news(delta)
        if self._span is None:
            self._span = asyncio.get_running_loop().call_later(SPAN_S, self._end_span)
        room = min(self._room, MAX_LINES)
        for warning in delta.warnings[:room]:
            logger.warning("%s", warning)
        if len(delta.warnings) > room:
            self._held["warnings"] += len(delta.warnings) - room
        lists = {"added": delta.added, "changed": delta.changed, "removed": delta.removed}
        n_peers = sum(map(len, lists.values()))
        if n_peers <= room:
            for what, peers in lists.items():
                for peer in peers:
                    logger.info("peer %s: %s via %s", what, peer.subnet, peer.public_ip)
        else:
            self._held.update({what: len(peers) for what, peers in lists.items() if peers})
        if room:  # a span's first floods are told at once, those that follow wait for its end
            self._summarise()
        self._room = max(0, self._room - n_peers - len(delta.warnings))

    def _end_span(self) -> None:
        self._span, self._room = None, SPAN_LINES
        if self._held:
            self._summarise()
            self._room = MAX_LINES  # a flood that goes on gets less room
            self._span = asyncio.get_running_loop().call_later(SPAN_S, self._end_span)

    def _summarise(self) -> None:
        warnings = self._held.pop("warnings", 0)
        if warnings:
            logger.warning("... and %d more warnings like these", warnings)
        if self._held:
            counts = ", ".join(f"{n} {what}" for what, n in self._held.items())
            logger.info("peers: %s, now %d", counts, self._count())
        self._held.clear()
