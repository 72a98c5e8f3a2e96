"""A host gets an address of another family while it holds its lease: the key gets that part, and nothing is lost."""

from __future__ import annotations

import asyncio
import logging
import random
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from flannel_udp.control.lease import LeaseKeeper
from flannel_udp.errors import RegistryError
from flannel_udp.model import LeaseAttrs, Subnet
from flannel_udp.registry.keys import format_key, parse_key
from tests.support.backends import parse_families
from tests.support.keepers import MARGIN_S, QUICK, eventually, forward_for_ever, kept, soon
from tests.support.memory_registry import MemoryRegistry
from tests.support.patience import PATIENCE_S

DUAL = parse_families({"Network": "10.1.0.0/16", "EnableIPv6": True, "IPv6Network": "fd00:1::/48"})
IP, IPV6 = IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")
ONLY_V4, ONLY_V6, BOTH = LeaseAttrs(IP), LeaseAttrs(None, IPV6), LeaseAttrs(IP, IPV6)
VALUE = b'{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1"}'
FORMER = Subnet(IPv4Network("10.1.15.0/24"), IPv6Network("fd00:1:0:2::/64"))


def keeper_of(registry: MemoryRegistry, attrs: LeaseAttrs, previous: Subnet | None = None) -> LeaseKeeper:
    rng = random.Random(1)
    return LeaseKeeper(registry, attrs, MARGIN_S, forward_for_ever, previous=previous, delays=QUICK, rng=rng)


def widening(keeper: LeaseKeeper) -> asyncio.Event:
    """Return what is set when the lease has become one for more families."""
    event = asyncio.Event()
    keeper.widened = event.set
    return event


async def held(registry: MemoryRegistry, keeper: LeaseKeeper) -> None:
    """Wait until what the registry has is what is held, and measured."""
    async with asyncio.timeout(PATIENCE_S):
        while keeper.lease is None or registry.calls[-1] != "time_left_s":
            await asyncio.sleep(0.001)
    assert registry.entries == {keeper.lease.entry.key: keeper.lease.entry}


@pytest.mark.parametrize("first", [ONLY_V4, ONLY_V6], ids=["IPv4 first", "IPv6 first"])
async def test_the_part_that_is_there_stays_and_the_other_one_joins_it_under_one_key(first: LeaseAttrs) -> None:
    registry = MemoryRegistry()
    keeper = keeper_of(registry, first)
    before = await soon(keeper.acquire(DUAL))
    widened = widening(keeper)
    async with kept(keeper) as keeping:
        keeper.set_attrs(BOTH)
        await soon(widened.wait())
        await held(registry, keeper)
        assert not keeping.done()
    lease = keeper.lease
    assert lease is not None
    assert (lease.entry.key, lease.entry.value, lease.attrs) == (format_key(lease.subnet), VALUE, BOTH)
    assert lease.entry.lease_id == before.entry.lease_id
    (part,) = before.subnet.prefixes
    assert lease.subnet.of(part.version) == part
    assert all(DUAL.fits(subnet) for subnet in (lease.subnet, parse_key(lease.entry.key)))


async def test_the_part_of_subnet_env_is_taken_while_it_is_free() -> None:
    registry = MemoryRegistry()
    keeper = keeper_of(registry, ONLY_V4, FORMER)
    await soon(keeper.acquire(DUAL))
    widened = widening(keeper)
    async with kept(keeper):
        keeper.set_attrs(BOTH)
        await soon(widened.wait())
    assert keeper.lease is not None
    assert keeper.lease.subnet == FORMER


async def test_a_reservation_stays_as_it_is_and_says_the_address() -> None:
    registry = MemoryRegistry()
    registry.put("10.1.15.0-24", b'{"PublicIP":"192.0.2.1","PublicIPv6":null}', 0)
    keeper = keeper_of(registry, ONLY_V4)
    await soon(keeper.acquire(DUAL))
    async with kept(keeper):
        keeper.set_attrs(BOTH)
        await eventually(registry, "list", 2)
        await asyncio.sleep(0)
    assert {key: entry.value for key, entry in registry.entries.items()} == {"10.1.15.0-24": VALUE}


async def test_what_the_store_assigned_counts_as_soon_as_there_is_an_address_for_it() -> None:
    registry = MemoryRegistry()
    registry.given = registry.put("10.1.15.0-24&fd00:1:0:2::-64", b'{"PublicIP":"192.0.2.1"}', 0)
    keeper = keeper_of(registry, ONLY_V4)
    lease = await soon(keeper.acquire(DUAL))
    assert lease.subnet == Subnet(FORMER.v4)
    widened = widening(keeper)
    async with kept(keeper):
        keeper.set_attrs(BOTH)
        await soon(widened.wait())
    assert keeper.lease is not None
    assert keeper.lease.subnet == FORMER
    assert "move" not in registry.calls


async def test_while_no_subnet_of_that_family_is_free_the_lease_lives_on_and_one_line_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry = MemoryRegistry()
    narrow = parse_families(
        {"Network": "10.1.0.0/16", "EnableIPv6": True, "IPv6Network": "fd00:1::/62", "IPv6SubnetLen": 64}
    )
    for n in (1, 2, 3):
        registry.put(f"10.1.{n}.0-24&fd00:1:0:{n}::-64", b'{"PublicIP":"192.0.2.9","PublicIPv6":"2001:db8::9"}')
    keeper = keeper_of(registry, ONLY_V4)
    await soon(keeper.acquire(narrow))
    widened = widening(keeper)
    with caplog.at_level(logging.INFO):
        async with kept(keeper) as keeping:
            keeper.set_attrs(BOTH)
            await eventually(registry, "renew", 5)
            assert not keeping.done()
            registry.remove("10.1.2.0-24&fd00:1:0:2::-64")
            await soon(widened.wait())
    assert keeper.lease is not None
    assert keeper.lease.subnet.v6 == IPv6Network("fd00:1:0:2::/64")
    assert len([line for line in caplog.messages if "all 3 subnets" in line]) == 1


async def test_a_move_of_which_only_the_answer_was_lost_is_found_under_the_new_key() -> None:
    registry = MemoryRegistry()
    keeper = keeper_of(registry, ONLY_V4, FORMER)
    await soon(keeper.acquire(DUAL))

    def lose(call: str) -> None:
        if call == "move" and len(registry.entries) == 1 and registry.calls.count(call) == 1:
            ((key, entry),) = registry.entries.items()
            moved = format_key(Subnet(parse_key(key).v4, FORMER.v6))
            registry.entries = {moved: registry.put(moved, entry.value, entry.lease_id)}
            keeper.observe(None)
            raise RegistryError("connection reset")

    registry.before = lose
    widened = widening(keeper)
    async with kept(keeper) as keeping:
        keeper.set_attrs(BOTH)
        await soon(widened.wait())
        await held(registry, keeper)
        assert not keeping.done()
    assert keeper.lease is not None
    assert keeper.lease.subnet.v6 == FORMER.v6


async def test_a_key_that_somebody_takes_first_is_another_hosts_and_the_next_one_ours() -> None:
    registry = MemoryRegistry()
    keeper = keeper_of(registry, ONLY_V4, FORMER)
    await soon(keeper.acquire(DUAL))

    def rival(call: str) -> None:
        if call == "list" and registry.calls.count("move") == 1:
            registry.put("10.1.77.0-24&fd00:1:0:2::-64", b'{"PublicIP":"192.0.2.9","PublicIPv6":"2001:db8::9"}')

    registry.before = rival
    widened = widening(keeper)
    async with kept(keeper) as keeping:
        keeper.set_attrs(BOTH)
        await soon(widened.wait())
        assert not keeping.done()
    assert keeper.lease is not None
    assert keeper.lease.subnet.v4 == FORMER.v4
    assert keeper.lease.subnet.v6 not in (None, FORMER.v6)
    assert len(registry.entries) == 2
