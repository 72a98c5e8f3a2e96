"""Trying again: the delays, and what is news."""

from __future__ import annotations

import random

from flannel_udp.backoff.delay import Backoff
from flannel_udp.backoff.said_once import SaidOnce


def test_the_delays_double_up_to_the_last_and_begin_anew_after_a_success() -> None:
    backoff = Backoff(1.0, 5.0)
    assert [backoff.next_s() for _ in range(5)] == [1, 2, 4, 5, 5]
    backoff.reset()
    assert [backoff.next_s() for _ in range(2)] == [1, 2]


def test_hosts_that_fail_together_come_back_apart() -> None:
    hosts = [Backoff(1.0, 5.0, random.Random(seed)) for seed in range(100)]
    for expected in (1, 2, 4, 5, 5):
        delays = [host.next_s() for host in hosts]
        assert len(set(delays)) == 100
        assert all(expected <= delay <= 1.25 * expected for delay in delays)


def test_a_failure_is_news_when_its_reason_changes() -> None:
    said = SaidOnce()
    assert [said.failed(reason) for reason in ("a", "a", "b", "b", "a")] == [True, False, True, False, True]


def test_a_success_is_news_after_a_failure_only_and_the_same_failure_is_news_again() -> None:
    said = SaidOnce()
    assert not said.worked()
    assert said.failed(["a", "b"])
    assert not said.failed(["a", "b"])
    assert said.worked()
    assert not said.worked()
    assert said.failed(["a", "b"])
