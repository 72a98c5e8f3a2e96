from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.datagrams import MAX_LOSS, SEARCH_HIGH_PPS, SEARCH_LOW_PPS, SEARCH_STEPS, Counted, Trial, search

PRECISION = (SEARCH_HIGH_PPS / SEARCH_LOW_PPS) ** (0.5**SEARCH_STEPS)


@given(st.floats(SEARCH_LOW_PPS, SEARCH_HIGH_PPS))
def test_the_search_ends_just_below_the_rate_that_still_passes(capacity: float) -> None:
    found = search(lambda rate: rate <= capacity, SEARCH_LOW_PPS, SEARCH_HIGH_PPS, SEARCH_STEPS)
    assert found <= capacity <= found * PRECISION * (1 + 1e-9)


def test_the_search_tries_each_step_once_and_no_rate_twice() -> None:
    tried: list[float] = []

    def passes(rate: float) -> bool:
        tried.append(rate)
        return rate < 100

    search(passes, 10, 1000, 6)
    assert len(tried) == len(set(tried)) == 6


def test_a_path_that_carries_nothing_gives_the_lower_end() -> None:
    assert search(lambda _rate: False, 10, 1000, 6) == 10


def trial(sent: int, delivered: int, seconds: float = 1.0) -> Trial:
    return Trial(Counted(sent, seconds), delivered)


@pytest.mark.parametrize(
    ("made", "holds"),
    [
        (trial(100_000, 100_000), True),
        (trial(100_000, 99_500), True),
        (trial(100_000, 99_499), False),
        (trial(98_000, 98_000), True),
        (trial(97_999, 97_999), False),  # nothing was lost because less was sent
        (trial(100_000, 100_000, seconds=1.1), False),
    ],
)
def test_a_rate_holds_if_it_was_offered_and_at_most_half_a_percent_was_lost(made: Trial, holds: bool) -> None:
    assert MAX_LOSS == 0.005
    assert made.holds(100_000) is holds


def test_loss_is_the_share_of_what_was_sent() -> None:
    assert trial(200, 150).loss == 0.25
