"""The peers' rates: means over a second or so, of what was counted between two looks."""

from __future__ import annotations

import pytest

from flannel_udp.control.peer_rates import STALE_S, PeerRates
from flannel_udp.model import RATE_KEYS, PeerActivity, PeerRate

PEER, OTHER = 0xC0000202, 0xC0000203


class World:
    """A clock, and the rates by it."""

    def __init__(self) -> None:
        self.now_s = 1_000.0
        self.rates = PeerRates(lambda: self.now_s)

    def pass_on(self, seconds: float, *activities: PeerActivity) -> None:
        self.now_s += seconds
        for activity in activities:
            self.rates.note_activity(activity)
        self.rates.end_counting()


@pytest.fixture
def world() -> World:
    return World()


def sent(n: int, peer: int = PEER) -> PeerActivity:
    return PeerActivity(peer, n, 2 * n, 100, 100 * n, 50 * n)


def test_before_the_first_second_is_over_nothing_is_known(world: World) -> None:
    assert world.rates.rate(PEER) is None
    world.pass_on(0.5, sent(10))
    assert world.rates.rate(PEER) is None


def test_a_rate_is_what_passed_in_the_last_second_or_so(world: World) -> None:
    world.pass_on(1.25, sent(10))
    assert world.rates.rate(PEER) == PeerRate(8, 800, 16, 400)
    assert world.rates.rate(OTHER) == PeerRate(0, 0, 0, 0)
    world.pass_on(1.0)
    assert world.rates.rate(PEER) == PeerRate(0, 0, 0, 0)


def test_who_looks_more_often_changes_no_rate(world: World) -> None:
    world.pass_on(1.0, sent(10))
    for _ in range(3):
        world.pass_on(0.25, sent(5))
        assert world.rates.rate(PEER) == PeerRate(10, 1000, 20, 500)
    world.pass_on(0.25, sent(5))
    assert world.rates.rate(PEER) == PeerRate(20, 2000, 40, 1000)


def test_what_is_old_is_not_told(world: World) -> None:
    world.pass_on(1.0, sent(10))
    world.now_s += STALE_S + 0.1
    assert world.rates.rate(PEER) is None


@pytest.mark.parametrize("by", RATE_KEYS)
def test_the_busiest_come_first(world: World, by: str) -> None:
    third = OTHER + 1
    world.pass_on(1.0, sent(5), sent(9, OTHER), sent(7, third))
    assert list(world.rates.busiest(2, by)) == [OTHER, third]
    assert list(world.rates.busiest(9, by)) == [OTHER, third, PEER]


def test_the_busiest_by_one_direction_are_not_those_by_the_other(world: World) -> None:
    world.pass_on(1.0, PeerActivity(PEER, 1, 9, 100, 100, 900), PeerActivity(OTHER, 2, 1, 100, 50, 100))
    first = {by: next(iter(world.rates.busiest(1, by))) for by in RATE_KEYS}
    assert first == {
        "bytes": PEER,
        "bytes-out": PEER,
        "bytes-in": PEER,
        "packets": PEER,
        "packets-out": OTHER,
        "packets-in": PEER,
    }
