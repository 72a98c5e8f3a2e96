"""How large packets may be on a path that says nothing, and when it is asked."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import pytest

from flannel_udp.control.path_search import BASE_BYTES, SMALL_BYTES, search_path_mtu
from flannel_udp.control.path_search import FLOOR_BYTES as FLOORS
from flannel_udp.control.peer_paths import (
    AGAIN_S,
    LARGE_BYTES,
    LIMITED_AGAIN_S,
    NEWS_AGAIN_S,
    PeerPaths,
)
from flannel_udp.model import PeerActivity

PEER = 0xC0000202
FLOOR_BYTES, FLOOR_V6_BYTES = FLOORS[4], FLOORS[6]


def path(carried: int, asked: list[int] | None = None) -> Callable[[int], Awaitable[bool]]:
    async def carries(n_bytes: int) -> bool:
        if asked is not None:
            asked.append(n_bytes)
        return n_bytes <= carried

    return carries


@pytest.mark.parametrize("carried", [FLOOR_BYTES, 600, 1_000, BASE_BYTES, 1_372, 1_470, 1_471])
@pytest.mark.parametrize("largest", [1_472, 8_972, 65_507])
async def test_the_largest_size_that_passes_is_found(carried: int, largest: int) -> None:
    assert await search_path_mtu(path(carried), largest) == carried


async def test_a_path_that_carries_all_is_asked_once() -> None:
    asked: list[int] = []
    assert await search_path_mtu(path(9_000, asked), 1_472) == 1_472
    assert asked == [1_472]


@pytest.mark.parametrize("carried", [0, SMALL_BYTES - 1, SMALL_BYTES, FLOOR_BYTES - 1])
async def test_what_does_not_answer_small_ones_is_not_judged_and_nothing_is_limited_too_far(carried: int) -> None:
    assert await search_path_mtu(path(carried), 1_472) is None


@pytest.mark.parametrize(("carried", "found"), [(1_279, None), (1_280, 1_280), (1_400, 1_400), (1_452, 1_452)])
async def test_ipv6_is_limited_to_no_less_than_what_every_link_carries(carried: int, found: int | None) -> None:
    asked: list[int] = []
    assert await search_path_mtu(path(carried, asked), 1_452, FLOOR_V6_BYTES) == found
    assert min(size for size in asked if size != SMALL_BYTES) >= FLOOR_V6_BYTES


async def test_a_peer_that_dies_in_the_middle_is_not_judged() -> None:
    left = 6

    async def carries(n_bytes: int) -> bool:
        nonlocal left
        left -= 1
        return left > 0 and n_bytes <= 1_372

    assert await search_path_mtu(carries, 1_472) is None


async def test_a_path_that_loses_some_of_everything_is_hardly_ever_called_narrow() -> None:
    chance = random.Random(1)

    async def carries(_n_bytes: int) -> bool:
        return chance.random() < 0.8  # after all tries for a size

    found = [await search_path_mtu(carries, 1_472) for _ in range(200)]
    assert sum(n not in (1_472, None) for n in found) <= 2


class World:
    def __init__(self) -> None:
        self.now_s = 1_000.0
        self.paths = PeerPaths(lambda: self.now_s)

    def send(self, n_bytes: int, *, limited: bool = False) -> None:
        self.paths.note_activity(PeerActivity(PEER, 1, 0, n_bytes), limited=limited)

    def is_due(self) -> bool:
        return self.paths.due(()) == [PEER]

    def ask(self, *, settled: bool) -> None:
        assert self.is_due()
        self.paths.begin_asking(PEER)
        assert not self.is_due()
        self.paths.note_answer(PEER, settled=settled)


@pytest.fixture
def world() -> World:
    return World()


def test_the_first_large_packet_raises_the_question(world: World) -> None:
    world.send(LARGE_BYTES)
    assert not world.is_due()
    world.send(LARGE_BYTES + 1)
    assert world.paths.due({PEER}) == []  # who does not answer is not judged
    assert world.is_due()


def test_a_path_is_asked_again_while_large_packets_take_it(world: World) -> None:
    world.send(1_472)
    world.ask(settled=True)
    world.now_s += AGAIN_S
    assert not world.is_due()
    world.send(100)
    assert not world.is_due()
    world.send(1_472)
    assert world.is_due()


def test_a_narrow_path_is_asked_sooner_and_whatever_takes_it(world: World) -> None:
    world.send(1_472)
    world.ask(settled=False)
    world.now_s += LIMITED_AGAIN_S
    world.send(100, limited=True)
    assert world.is_due()


def test_news_of_the_underlay_raise_the_question_about_paths_in_use(world: World) -> None:
    world.send(1_472)
    world.ask(settled=True)
    world.now_s += 1
    world.paths.note_news()
    assert not world.is_due()
    world.now_s += NEWS_AGAIN_S
    assert world.is_due()
    world.ask(settled=True)
    world.now_s += AGAIN_S
    world.paths.note_news()
    assert not world.is_due()


def test_a_peer_that_is_none_any_more_is_forgotten(world: World) -> None:
    world.send(1_472)
    world.paths.begin_asking(PEER)
    world.paths.forget([PEER])
    world.paths.note_answer(PEER, settled=True)
    assert world.paths.due(()) == []


def test_every_path_has_its_turn_however_often_news_come(world: World) -> None:
    peers, at_once = range(60), 2
    asked: set[int] = set()
    for _ in range(60 // at_once):
        world.now_s += NEWS_AGAIN_S
        world.paths.note_news()
        for peer in peers:
            world.paths.note_activity(PeerActivity(peer, 1, 0, LARGE_BYTES + 1), limited=False)
        for peer in world.paths.due(())[:at_once]:
            world.paths.begin_asking(peer)
            world.paths.note_answer(peer, settled=True)
            asked.add(peer)
    assert asked == set(peers)
