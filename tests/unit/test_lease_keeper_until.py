"""The dataplane knows the end of the lease beforehand, so that it stops also when the keeper cannot tell it."""

from __future__ import annotations

import pytest

from flannel_udp.control.boottime import now_s
from flannel_udp.control.lease import OVER_S
from flannel_udp.errors import RegistryError
from tests.support.keepers import CONFIG, OUR_VALUE, eventually, keeper_of, kept, soon
from tests.support.memory_registry import MemoryRegistry


async def test_a_lease_may_be_forwarded_for_until_shortly_before_its_end() -> None:
    registry, told = MemoryRegistry(), list[float | None]()
    registry.granted_s = 1_000.0
    before_s = now_s()
    await soon(keeper_of(registry, forward_until=told.append).acquire(CONFIG))
    (until_s,) = told
    assert until_s is not None
    assert before_s - 1 < until_s - (1_000 - 11) < now_s() + 1  # 10 s, and a thousandth of its life


async def test_a_renewal_moves_the_end() -> None:
    registry, told = MemoryRegistry(), list[float | None]()
    registry.granted_s = 6.0
    keeper = keeper_of(registry, margin_s=5.9, forward_until=told.append)
    await soon(keeper.acquire(CONFIG))
    async with kept(keeper):
        await eventually(registry, "time_left_s", 3)
    times = [until_s for until_s in told if until_s is not None]
    assert len(times) == len(told)
    assert times == sorted(times)
    assert len(set(times)) > 1


async def test_a_reservation_has_no_end() -> None:
    registry, told = MemoryRegistry(), list[float | None]()
    registry.put("10.1.5.0-24", OUR_VALUE, lease_id=0)
    await soon(keeper_of(registry, forward_until=told.append).acquire(CONFIG))
    assert told == [None]


async def test_a_doubt_brings_the_end_near() -> None:
    registry, told = MemoryRegistry(), list[float | None]()
    keeper = keeper_of(registry, forward_until=told.append)
    await soon(keeper.acquire(CONFIG))
    registry.failure = RegistryError("etcd does not answer")
    before_s = now_s()
    async with kept(keeper):
        keeper.observe(None)
        await eventually(registry, "renew", 1)
    until_s = told[-1]
    assert until_s is not None
    assert before_s - 1 < until_s - 10 < now_s() + 1


async def test_at_its_loss_the_time_is_over_and_stays_so_until_the_next_lease() -> None:
    registry, told = MemoryRegistry(), list[float | None]()
    keeper = keeper_of(registry, forward_until=told.append)
    key = (await soon(keeper.acquire(CONFIG))).entry.key
    async with kept(keeper) as task:
        registry.remove(key)
        keeper.observe(None)
        await soon(task)
    assert told[-1] == OVER_S
    registry.before = lambda _call: assert_over(told)
    await soon(keeper.acquire(CONFIG))
    assert told[-1] == pytest.approx(now_s() + registry.granted_s, rel=0.01)


async def test_the_time_is_over_before_a_released_lease_is_anybodys() -> None:
    registry, told = MemoryRegistry(), list[float | None]()
    keeper = keeper_of(registry, forward_until=told.append)
    await soon(keeper.acquire(CONFIG))
    registry.before = lambda _call: assert_over(told)
    await soon(keeper.release())
    assert registry.entries == {}


def assert_over(told: list[float | None]) -> None:
    assert told[-1] == OVER_S


async def test_an_adopted_lease_has_its_end_before_anything_is_asked() -> None:
    registry, told = MemoryRegistry(), list[float | None]()
    entry = (await soon(keeper_of(registry).acquire(CONFIG))).entry
    end_s = now_s() + 1_000.0
    keeper_of(registry, forward_until=told.append).adopt(entry, end_s)
    (until_s,) = told
    assert until_s is not None
    assert end_s - 200 < until_s < end_s
