"""What the lease says of this host changes while it is held: the other hosts learn it, and nothing is lost."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address

from flannel_udp.errors import RegistryError
from flannel_udp.model import LeaseAttrs
from tests.support.keepers import CONFIG, OTHER_VALUE, OUR_IP, OUR_VALUE, eventually, keeper_of, kept, soon
from tests.support.memory_registry import MemoryRegistry
from tests.support.patience import PATIENCE_S


async def test_another_public_ip_is_registered_at_once_under_the_same_subnet() -> None:
    registry = MemoryRegistry()
    keeper = keeper_of(registry)
    before = await soon(keeper.acquire(CONFIG))
    key = before.entry.key
    async with kept(keeper) as task:
        keeper.set_attrs(LeaseAttrs(IPv4Address("192.0.2.9")))
        await eventually(registry, "renew", 1)
        async with asyncio.timeout(PATIENCE_S):
            while keeper.lease is not None and keeper.lease.attrs.public_ip != IPv4Address("192.0.2.9"):
                await asyncio.sleep(0.001)
        assert not task.done()
        assert (registry.entries[key].value, registry.entries[key].lease_id) == (OTHER_VALUE, before.entry.lease_id)
        assert keeper.lease is not None
        assert (keeper.lease.subnet, keeper.lease.attrs.public_ip) == (before.subnet, IPv4Address("192.0.2.9"))
        registry.put(key, OUR_VALUE)  # under our former address it would be another host's
        keeper.observe(registry.entries[key])
        assert await soon(task) == f"{key} was taken by {OUR_IP}"


async def test_another_public_ip_never_overwrites_a_key_that_was_lost() -> None:
    registry = MemoryRegistry()
    keeper = keeper_of(registry)
    key = (await soon(keeper.acquire(CONFIG))).entry.key
    registry.put(key, b'{"PublicIP":"192.0.2.77"}')
    async with kept(keeper) as task:
        keeper.set_attrs(LeaseAttrs(IPv4Address("192.0.2.9")))
        assert await soon(task) == f"{key} was taken by 192.0.2.77"
    assert registry.entries[key].value == b'{"PublicIP":"192.0.2.77"}'


async def test_another_public_ip_while_the_registry_is_away_costs_nothing_and_is_registered_later() -> None:
    registry = MemoryRegistry()
    keeper = keeper_of(registry)
    key = (await soon(keeper.acquire(CONFIG))).entry.key
    registry.failure = RegistryError("etcd does not answer")
    async with kept(keeper) as task:
        keeper.set_attrs(LeaseAttrs(IPv4Address("192.0.2.8")))
        await eventually(registry, "renew", 2)
        keeper.set_attrs(LeaseAttrs(IPv4Address("192.0.2.9")))
        await eventually(registry, "renew", 4)
        registry.failure = None
        await eventually(registry, "time_left_s", 2)
        assert not task.done()
    assert registry.entries[key].value == OTHER_VALUE


async def test_a_watch_that_shows_our_new_public_ip_before_the_renewal_is_answered_is_no_loss() -> None:
    registry = MemoryRegistry()
    keeper = keeper_of(registry)
    key = (await soon(keeper.acquire(CONFIG))).entry.key

    def show(call: str) -> None:
        if call == "renew" and registry.entries[key].value == OUR_VALUE:
            keeper.observe(registry.put(key, OTHER_VALUE))  # the renewal took effect, and its answer is lost
            raise RegistryError("connection reset")

    registry.before = show
    async with kept(keeper) as task:
        keeper.set_attrs(LeaseAttrs(IPv4Address("192.0.2.9")))
        await eventually(registry, "time_left_s", 2)
        assert not task.done()
    assert keeper.lease is not None
    assert keeper.lease.entry == registry.entries[key]


async def test_another_public_ip_while_the_lease_is_acquired_is_registered_as_soon_as_it_is_held() -> None:
    registry = MemoryRegistry()
    registry.put("10.1.5.0-24", OUR_VALUE)
    keeper = keeper_of(registry)

    def move(call: str) -> None:
        if call == "time_left_s" and registry.calls.count(call) == 1:  # our former address is written already
            keeper.set_attrs(LeaseAttrs(IPv4Address("192.0.2.9")))

    registry.before = move
    lease = await soon(keeper.acquire(CONFIG))
    assert lease.attrs.public_ip == IPv4Address(OUR_IP)
    async with kept(keeper) as task:
        await eventually(registry, "time_left_s", 2)
        await asyncio.sleep(0)
        assert not task.done()
    assert registry.entries[lease.entry.key].value == OTHER_VALUE
    assert keeper.lease is not None
    assert keeper.lease.attrs.public_ip == IPv4Address("192.0.2.9")


async def test_a_request_that_is_under_way_when_the_lease_is_released_is_given_up() -> None:
    registry = MemoryRegistry()
    keeper = keeper_of(registry)

    def move(call: str) -> None:
        if call == "time_left_s":
            registry.hang = True
            keeper.set_attrs(LeaseAttrs(IPv4Address("192.0.2.9")))

    registry.before = move
    await soon(keeper.acquire(CONFIG))
    await eventually(registry, "renew", 1)
    await soon(keeper.release())
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert registry.entries == {}
