"""One look a second, shared by all who watch, and none while nobody does; and what passed between two."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from flannel_udp.errors import FlannelError
from flannel_udp.view import looks as module
from flannel_udp.view.looks import Event, Looks
from flannel_udp.view.rates import Rates
from tests.support.patience import PATIENCE_S


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EACH_S", 0.01)


class Lab:
    """Counts how often it was looked at."""

    def __init__(self) -> None:
        self.looked = 0
        self.trouble = False

    async def look(self) -> int:
        self.looked += 1
        await asyncio.sleep(0)
        if self.trouble:
            raise FlannelError("no answer")
        return self.looked


async def following(events: AsyncGenerator[Event]) -> Event:
    return await asyncio.wait_for(anext(events), PATIENCE_S)


async def test_two_viewers_see_the_same_looks_and_nobody_looks_afterwards() -> None:
    lab = Lab()
    looks = Looks(lab.look)
    await asyncio.sleep(0.05)
    assert lab.looked == 0
    first, second = looks.watch(), looks.watch()
    assert (await following(first))[0] == "look"
    assert (await following(second))[0] == "look"
    seen = [[(await following(viewer))[1] for _ in range(5)] for viewer in (first, second)]
    assert all(numbers == sorted(set(numbers)) for numbers in seen)
    await first.aclose()
    assert (await following(second))[0] == "look"
    await second.aclose()
    looked = lab.looked
    await asyncio.sleep(0.05)
    assert lab.looked == looked


async def test_who_comes_back_is_looked_for_again() -> None:
    lab = Lab()
    looks = Looks(lab.look)
    for _ in range(3):
        viewer = looks.watch()
        assert (await following(viewer))[0] == "look"
        await viewer.aclose()
    assert lab.looked >= 3


async def test_who_comes_while_the_last_one_leaves_is_looked_for() -> None:
    looks = Looks(Lab().look)
    leaves, comes = looks.watch(), looks.watch()
    await following(leaves)
    leaving, coming = asyncio.create_task(leaves.aclose()), asyncio.create_task(following(comes))
    await leaving
    assert (await coming)[0] == "look"
    await comes.aclose()


async def test_who_has_just_changed_something_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EACH_S", 10 * PATIENCE_S)
    looks = Looks(Lab().look)
    viewer = looks.watch()
    await following(viewer)
    looks.hurry()
    assert (await following(viewer))[0] == "look"
    await viewer.aclose()


async def test_what_goes_wrong_is_told_and_the_next_look_tried() -> None:
    lab = Lab()
    lab.trouble = True
    looks = Looks(lab.look)
    viewer = looks.watch()
    assert await following(viewer) == ("trouble", "no answer")
    lab.trouble = False
    while (event := await following(viewer))[0] == "trouble":
        pass
    assert event[0] == "look"
    await viewer.aclose()


async def test_the_end_is_told_to_all_and_is_the_last_thing() -> None:
    looks = Looks(Lab().look)
    viewers = [looks.watch(), looks.watch()]
    for viewer in viewers:
        await following(viewer)
    await looks.end("the lab is gone")
    for viewer in viewers:
        assert [event async for event in viewer] == [("end", "the lab is gone")]


def test_rates_are_what_grew_in_a_second() -> None:
    rates = Rates()
    assert rates.since_last({"a": 100, "b": 7}, 10.0) == {"a": None, "b": None}
    assert rates.since_last({"a": 300, "b": 7}, 12.0) == {"a": 100.0, "b": 0.0}


def test_what_is_new_or_begins_anew_has_no_rate_yet() -> None:
    rates = Rates()
    rates.since_last({"a": 100}, 10.0)
    assert rates.since_last({"a": 50, "b": 7}, 11.0) == {"a": None, "b": None}
    assert rates.since_last({"a": 60, "b": 8}, 12.0) == {"a": 10.0, "b": 1.0}


def test_a_reading_from_before_a_pause_says_nothing_of_now() -> None:
    rates = Rates()
    rates.since_last({"a": 100}, 10.0)
    assert rates.since_last({"a": 100_000}, 100.0) == {"a": None}
