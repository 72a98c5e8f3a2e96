"""How sure a ratio of two medians is: a bootstrap over rounds, seeded, so that the same files give the same answer.

The standard error of the ratio's logarithm is that of 1,000 draws of the rounds with replacement; Student's t makes an
interval of it. The usual percentile interval of such draws is far too narrow for the five to fifteen rounds that a run
has: with five it claims something that is not there in 2 of 100 rows at best, and no number of draws helps.

Where many rows are read at once, 5 % of them would be "differences" by chance alone. So each interval is widened until
all of a table hold together in 95 of 100 runs (Bonferroni: 5 % divided by the rows). Holm's steps would find a little
more, but have no intervals to show, and a verdict has to be seen in the interval beside it.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from flannel_udp.bench.samples import Series

MIN_ROUNDS = 4
"""With fewer nothing is claimed: three rounds that agree by chance are too likely."""
LEVEL = 0.95
_DRAWS = 1000
_POWER = 0.84
"""Standard errors that a true difference lies beyond the interval's half for it to be found in four of five runs."""
_FINEST = 0.005
"""The least half of an interval, as a logarithm: rounded figures may agree to the last digit without being so exact."""

Key = TypeVar("Key")
Draws = Mapping[Key, Sequence[float | None]]
"""For each series the logarithm of its median in each draw; ``None`` where the draw met none of its rounds."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A ratio and between what it lies. `visible` is the change, as a share, that four of five such runs would find."""

    ratio: float
    low: float
    high: float
    visible: float

    @property
    def beyond_noise(self) -> bool:
        """Whether it is surely not 1."""
        return not self.low <= 1 <= self.high


def draw(of: Mapping[Key, Series], seed: str) -> dict[Key, list[float | None]]:
    """Return the draws of all series of one run that have a logarithm.

    The rounds are drawn for all of them at once, since the contenders of a round are measured one after another: what
    moved the machine moved them all. Two runs need two seeds.
    """
    chooser = random.Random(seed)  # noqa: S311 - to be repeated, no secret
    rounds = sorted({number for values in of.values() for number in values})
    drawn = [chooser.choices(rounds, k=len(rounds)) for _ in range(_DRAWS)] if rounds else []
    return {
        key: [_log_median(values, numbers) for numbers in drawn] for key, values in of.items() if is_positive(values)
    }


def is_positive(values: Series) -> bool:
    """Tell whether a ratio can be made of a series: nothing is divided by 0, or has 0 as its share."""
    return bool(values) and min(values.values()) > 0


def _log_median(values: Series, rounds: Sequence[int]) -> float | None:
    met = [values[number] for number in rounds if number in values]
    return math.log(statistics.median(met)) if met else None


def log_ratio(of: Series, to: Series) -> float:
    """Return the logarithm of the ratio of the medians."""
    return math.log(statistics.median(of.values()) / statistics.median(to.values()))


def minus(of: Sequence[float | None], others: Sequence[float | None]) -> list[float | None]:
    """Return the differences, draw by draw."""
    return [None if one is None or other is None else one - other for one, other in zip(of, others, strict=True)]


def interval(found: float, draws: Sequence[float | None], n_values: int, n_rows: int) -> Interval | None:
    """Return the interval around `found`, the logarithm of a ratio of medians of `n_values` values in all.

    It holds together with those of `n_rows` rows. ``None`` where the draws are too few to tell.
    """
    known = [each for each in draws if each is not None]
    if len(known) < _DRAWS // 2:
        return None
    error = statistics.stdev(known)
    half = max(error * student_t(n_values - 2, (1 - LEVEL) / n_rows), _FINEST)
    return Interval(math.exp(found), math.exp(found - half), math.exp(found + half), math.expm1(half + _POWER * error))


def student_t(freedom: int, outside: float) -> float:
    """Return how many standard errors Student's t exceeds, either way, with the probability `outside`."""
    low, high = 0.0, 1e6
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if _within(middle, freedom) > 1 - outside else (middle, high)
    return high


def _within(t: float, freedom: int) -> float:
    """Return the probability that Student's t is between -t and t (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(3 if odd else 2, freedom - 1, 2):
        term *= square * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
