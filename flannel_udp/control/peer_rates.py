"""How much goes to each peer and comes from it, a second: what was counted between two looks. Pure.

A peer is known by its public IP, a number in host order. Only of those that anything was exchanged with something is
kept, and rates are worked out for who asks: to end a stretch costs nothing, however many peers there are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from heapq import nlargest

from flannel_udp.model import RATE_KEYS, PeerActivity, PeerRate

STRETCH_S = 1.0
"""Rates are means over that long, or a little more."""
STALE_S = 5.0
"""After so long without a look nothing is known."""


class PeerRates:
    """The peers' rates in the last stretch of time; `now` is the clock, in seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._began_s = now()
        self._gathered: dict[int, tuple[int, int, int, int]] = {}  # since then; as the fields of PeerRate
        self._counts: dict[int, tuple[int, int, int, int]] = {}  # in the stretch before that
        self._took_s = 0.0  # how long that was; 0: there is none

    def note_activity(self, activity: PeerActivity) -> None:
        """Take note of what went to a peer and came from it."""
        counts = activity.packets_out, activity.bytes_out, activity.packets_in, activity.bytes_in
        had = self._gathered.get(activity.public_ip)
        if had is not None:
            counts = counts[0] + had[0], counts[1] + had[1], counts[2] + had[2], counts[3] + had[3]
        self._gathered[activity.public_ip] = counts

    def end_counting(self) -> None:
        """Take note that `note_activity` was told of all until now."""
        took_s = self._now() - self._began_s
        if took_s >= STRETCH_S:
            self._began_s += took_s
            # A new one, as `busiest` may walk the old one.
            self._counts, self._gathered, self._took_s = self._gathered, {}, took_s

    def rate(self, peer: int) -> PeerRate | None:
        """Return a peer's rates, ``None`` where nobody has looked yet, or not lately."""
        if not self._took_s or self._now() - self._began_s > STALE_S:
            return None
        return PeerRate(*(count / self._took_s for count in self._counts.get(peer, (0, 0, 0, 0))))

    def busiest(self, n: int, by: str) -> Collection[int]:
        """Return up to so many peers, those first with the highest rates; `by` is one of `model.RATE_KEYS`.

        May take some milliseconds with thousands of peers, and may be called in any thread.
        """
        counts, fields = self._counts, [PeerRate._fields.index(name) for name in RATE_KEYS[by]]
        return nlargest(n, counts, key=lambda peer: sum(counts[peer][field] for field in fields))
