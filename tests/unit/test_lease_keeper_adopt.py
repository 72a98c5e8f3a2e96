"""An agent that takes over goes on with the lease of the one before, and asks the registry about it at once."""

from __future__ import annotations

import pytest

from flannel_udp.control.boottime import now_s
from flannel_udp.errors import RegistryError
from tests.support.keepers import CONFIG, OTHER_VALUE, eventually, keeper_of, kept, soon
from tests.support.memory_registry import MemoryRegistry


async def test_an_adopted_lease_is_held_at_once_and_renewed_at_once() -> None:
    registry = MemoryRegistry()
    former = keeper_of(registry)
    entry = (await soon(former.acquire(CONFIG))).entry
    keeper = keeper_of(registry)
    lease = keeper.adopt(entry, now_s() + 5_000)
    assert (keeper.lease, lease) == (lease, former.lease)
    assert keeper.left_s == pytest.approx(5_000, abs=1)
    async with kept(keeper) as task:
        await eventually(registry, "time_left_s", 2)
        assert not task.done()
    assert registry.entries == {entry.key: entry}  # no event for the peers


async def test_an_adopted_lease_that_cannot_be_renewed_is_given_up_before_it_ends() -> None:
    registry = MemoryRegistry()
    entry = (await soon(keeper_of(registry).acquire(CONFIG))).entry
    registry.failure = RegistryError("etcd does not answer")
    keeper = keeper_of(registry)
    end_s = now_s() + 2.0
    keeper.adopt(entry, end_s)
    async with kept(keeper) as task:
        assert "could not be renewed in time" in await soon(task)
    assert now_s() < end_s


async def test_a_reservation_is_adopted_without_an_end() -> None:
    registry = MemoryRegistry()
    keeper = keeper_of(registry)
    keeper.adopt(registry.put("10.1.5.0-24", b'{"PublicIP":"192.0.2.1"}', lease_id=0), None)
    assert (keeper.left_s, keeper.expires_s) == (None, None)
    async with kept(keeper) as task:
        await eventually(registry, "time_left_s", 1)
        assert not task.done()


async def test_another_hosts_lease_is_not_adopted() -> None:
    registry = MemoryRegistry()
    keeper = keeper_of(registry)
    with pytest.raises(ValueError, match=r"10\.1\.5\.0-24 belongs to 192\.0\.2\.9"):
        keeper.adopt(registry.put("10.1.5.0-24", OTHER_VALUE), now_s() + 100)
    assert keeper.lease is None
