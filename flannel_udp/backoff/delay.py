"""How long to wait before the next try: twice as long each time, up to a bound."""

from __future__ import annotations

import random

SPREAD = 0.25
"""Of a delay: so much longer it may be, so that hosts that failed together do not come back together."""


def doubled(delay_s: float, last_s: float) -> float:
    """Return the delay that follows `delay_s`, at most `last_s`."""
    return min(2 * delay_s, last_s)


def spread(delay_s: float, rng: random.Random) -> float:
    """Return a delay that is longer by up to `SPREAD`."""
    return delay_s * rng.uniform(1, 1 + SPREAD)


class Backoff:
    """The delays of one loop that tries until it works: `first_s` seconds, doubling to `last_s`.

    `rng` makes them longer by up to `SPREAD`; without one they are exact.
    """

    def __init__(self, first_s: float, last_s: float, rng: random.Random | None = None) -> None:
        self._rng = rng
        self._first_s = first_s
        self._last_s = last_s
        self._next_s = first_s

    def next_s(self) -> float:
        """Return for how many seconds to wait now; the next delay is longer."""
        delay_s = self._next_s
        self._next_s = doubled(delay_s, self._last_s)
        return delay_s if self._rng is None else spread(delay_s, self._rng)

    def reset(self) -> None:
        """Begin with the first delay again: it worked."""
        self._next_s = self._first_s
