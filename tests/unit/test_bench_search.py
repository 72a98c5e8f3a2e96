from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_udp.bench.datagrams import SEARCH_HIGH_PPS, SEARCH_LOW_PPS, SEARCH_STEPS, Trial, best_rate, search
from flannel_udp.bench.generators import Counted

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


@pytest.mark.parametrize(("delivered", "loss_free"), [(100_000, True), (99_500, True), (99_499, False)])
def test_at_most_half_a_percent_may_be_lost(delivered: int, loss_free: bool) -> None:
    assert trial(100_000, delivered).loss_free is loss_free


def test_a_path_that_drops_has_the_rate_up_to_which_it_does_not() -> None:
    best = best_rate(lambda rate: trial(round(rate), min(round(rate), 150_000)))
    assert best / 1.005 <= 150_000 <= best * PRECISION


def test_a_path_that_slows_its_sender_down_has_the_rate_that_the_sender_reached() -> None:
    assert best_rate(lambda rate: trial(min(round(rate), 150_000), min(round(rate), 150_000))) == 150_000


def test_one_hiccup_a_rate_changes_nothing() -> None:
    seen: set[float] = set()

    def take(rate: float) -> Trial:
        hiccup = rate not in seen
        seen.add(rate)
        return trial(round(rate), 0 if hiccup else min(round(rate), 150_000))

    assert best_rate(take) == best_rate(lambda rate: trial(round(rate), min(round(rate), 150_000)))


def test_a_path_that_always_loses_has_no_rate() -> None:
    assert best_rate(lambda rate: trial(round(rate), round(rate) // 2)) == 0


def test_loss_is_the_share_of_what_was_sent() -> None:
    assert trial(200, 150).loss == 0.25
