"""Two hosts with one address: the one whose key is rewritten stops, says who has it, and leaves it for a while."""

from __future__ import annotations

import asyncio
import logging
import random
from ipaddress import IPv4Address

import pytest

from flannel_udp.control.entries import read_lease
from flannel_udp.control.lease_actions import Ask, Lost, Survey
from flannel_udp.control.lease_machine import LeaseMachine
from flannel_udp.control.lease_safety import YIELD_S
from flannel_udp.control.retry import DEFAULT_DELAYS
from flannel_udp.errors import AddressClaimed
from flannel_udp.model import LEASE_TTL_S, Entry, LeaseAttrs, lease_id_of
from tests.support.keepers import (
    CONFIG,
    MARGIN_S,
    OTHER_MARK,
    OUR_IP,
    OUR_MARK,
    OUR_VALUE,
    eventually,
    keeper_of,
    kept,
    soon,
)
from tests.support.memory_registry import MemoryRegistry


@pytest.mark.parametrize(("mark", "who"), [(OTHER_MARK, "another host"), (OUR_MARK, "a copy of this host")])
async def test_who_sees_its_key_under_another_lease_stops_and_names_the_other(mark: int, who: str) -> None:
    registry = MemoryRegistry(OUR_MARK)
    keeper = keeper_of(registry, mark=OUR_MARK)
    key = (await soon(keeper.acquire(CONFIG))).entry.key
    async with kept(keeper) as task:
        keeper.observe(registry.put(key, OUR_VALUE, lease_id_of(mark, 99)))
        reason = await soon(task)
    assert reason.startswith(who)
    assert f"claims our address {OUR_IP}: {key} is under the mark {mark:08x} now, ours is {OUR_MARK:08x}" in reason
    assert keeper.claimed


async def test_a_claim_that_a_renewal_meets_is_one_too() -> None:
    registry = MemoryRegistry(OUR_MARK)
    registry.granted_s = 6.0
    keeper = keeper_of(registry, mark=OUR_MARK, margin_s=5.9)
    key = (await soon(keeper.acquire(CONFIG))).entry.key
    claim = registry.put(key, OUR_VALUE, lease_id_of(OTHER_MARK, 99))
    async with kept(keeper) as task:
        assert "claims our address" in await soon(task)
    assert registry.entries == {key: claim}


async def test_it_is_left_to_the_other_and_said_once_and_taken_as_soon_as_it_goes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    registry = MemoryRegistry(OUR_MARK)
    keeper = keeper_of(registry, mark=OUR_MARK)
    lease = await soon(keeper.acquire(CONFIG))
    claim = registry.put(lease.entry.key, OUR_VALUE, lease_id_of(OTHER_MARK, 99))
    async with kept(keeper) as task:
        keeper.observe(claim)
        await soon(task)
    acquiring = asyncio.create_task(keeper.acquire(CONFIG))
    await eventually(registry, "list", 5)
    assert registry.entries == {claim.key: claim}
    registry.remove(claim.key)
    assert (await soon(acquiring)).subnet == lease.subnet
    assert not keeper.claimed
    (line,) = [line for line in caplog.messages if "acquiring a subnet failed" in line]
    assert line == (
        f"acquiring a subnet failed: another host claims our address {OUR_IP}: {claim.key} is under the mark "
        f"{OTHER_MARK:08x} now, ours is {OUR_MARK:08x} (give each host its own, see --public-ip; it keeps the subnet "
        "for 10 min, unless it goes)"
    )


async def test_release_leaves_what_was_claimed() -> None:
    registry = MemoryRegistry(OUR_MARK)
    keeper = keeper_of(registry, mark=OUR_MARK)
    key = (await soon(keeper.acquire(CONFIG))).entry.key
    claim = registry.put(key, OUR_VALUE, lease_id_of(OTHER_MARK, 99))
    await soon(keeper.release())  # no watch has shown it yet
    assert registry.entries == {key: claim}


async def test_release_gives_back_also_what_was_written_and_not_yet_held() -> None:
    registry = MemoryRegistry(OUR_MARK)
    keeper = keeper_of(registry, mark=OUR_MARK)
    acquiring = asyncio.create_task(keeper.acquire(CONFIG))

    def stop(call: str) -> None:
        if call == "time_left_s":
            acquiring.cancel()

    registry.before = stop
    await asyncio.wait({acquiring})
    assert len(registry.entries) == 1
    await soon(keeper.release())
    assert registry.entries == {}


async def test_a_host_that_was_installed_anew_takes_its_entry_at_once_under_its_new_mark() -> None:
    registry = MemoryRegistry(OUR_MARK)
    former = registry.put("10.1.5.0-24", OUR_VALUE, lease_id_of(OTHER_MARK, 99))
    lease = await soon(keeper_of(registry, mark=OUR_MARK).acquire(CONFIG))
    assert lease.entry.key == former.key
    assert registry.entries[former.key].mark == OUR_MARK


async def test_a_reservation_that_flanneld_puts_under_a_lease_is_a_claim() -> None:
    registry = MemoryRegistry(OUR_MARK)
    registry.put("10.1.5.0-24", OUR_VALUE, lease_id=0)
    keeper = keeper_of(registry, mark=OUR_MARK)
    key = (await soon(keeper.acquire(CONFIG))).entry.key
    async with kept(keeper) as task:
        keeper.observe(registry.put(key, OUR_VALUE, lease_id_of(OTHER_MARK, 99)))
        assert "claims our address" in await soon(task)


async def test_an_adopted_lease_keeps_its_id() -> None:
    registry = MemoryRegistry(OUR_MARK)
    former = keeper_of(registry, mark=OUR_MARK)
    entry = (await soon(former.acquire(CONFIG))).entry
    keeper = keeper_of(registry, mark=OTHER_MARK)  # the host's id could not be read this time
    keeper.adopt(entry, former.expires_s)
    async with kept(keeper) as task:
        await eventually(registry, "time_left_s", 2)
        keeper.observe(registry.entries[entry.key])
        await asyncio.sleep(0)
        assert not task.done()
    assert registry.entries == {entry.key: entry}


def test_after_ten_minutes_it_is_taken_back_and_not_before() -> None:
    machine = LeaseMachine(LeaseAttrs(IPv4Address(OUR_IP)), MARGIN_S, DEFAULT_DELAYS, OUR_MARK, random.Random(1))
    entry = Entry("10.1.5.0-24", OUR_VALUE, 5, lease_id_of(OUR_MARK, 1))
    machine.adopt(0.0, read_lease(entry), LEASE_TTL_S)
    (lost,) = machine.observe(100.0, Entry(entry.key, OUR_VALUE, 6, lease_id_of(OTHER_MARK, 1)))
    assert isinstance(lost, Lost)
    asked = dict[float, bool]()
    actions, now_s = machine.seek(100.0), 100.0
    while len(asked) < 200:
        (ask,) = [action for action in actions if isinstance(action, Ask)]
        assert isinstance(ask.request, Survey)
        asked[now_s] = ask.request.seeker.yields
        machine.fail(now_s, ask.number, AddressClaimed("another host claims our address"))
        assert machine.wake_s is not None
        now_s = machine.wake_s
        actions = machine.tick(now_s)
    assert all(yields == (at_s < 100.0 + YIELD_S) for at_s, yields in asked.items())
    assert True in asked.values()
    assert False in asked.values()
