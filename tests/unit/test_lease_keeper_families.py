"""A lease with both families, or with IPv6 alone: one key, one value, one host."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import pytest

from flannel_udp.control.lease import LeaseKeeper
from flannel_udp.model import Lease, LeaseAttrs, Subnet
from flannel_udp.netconf.config import NetworkConfig
from flannel_udp.registry import Registry
from flannel_udp.registry.file.registry import FileRegistry
from flannel_udp.registry.keys import format_key, parse_key
from tests.support.backends import parse_families
from tests.support.keepers import MARGIN_S, QUICK, forward_for_ever, kept, soon
from tests.support.memory_registry import MemoryRegistry
from tests.support.patience import PATIENCE_S

DUAL = parse_families({"Network": "10.1.0.0/16", "EnableIPv6": True, "IPv6Network": "fd00:1::/48"})
ALONE = parse_families({"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": "fd00:1::/48"})
IP, IPV6 = IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")


def keeper_of(registry: Registry, attrs: LeaseAttrs, previous: Subnet | None = None, mark: int = 0) -> LeaseKeeper:
    rng = random.Random(1)
    return LeaseKeeper(registry, attrs, MARGIN_S, forward_for_ever, mark=mark, previous=previous, delays=QUICK, rng=rng)


@pytest.fixture
async def file_registry(tmp_path: Path) -> AsyncIterator[FileRegistry]:
    registry = FileRegistry(tmp_path / "registry.json", mark=7)
    yield registry
    await registry.close()


@pytest.mark.parametrize(
    ("attrs", "value"),
    [
        (
            LeaseAttrs(
                IP, IPV6, "vxlan", {"VNI": 1, "VtepMAC": "8e:64:7c:7f:e7:c9"}, {"VNI": 1, "VtepMAC": "0e:0:0:0:0:1"}
            ),
            (
                b'{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"vxlan",'
                b'"BackendData":{"VNI":1,"VtepMAC":"8e:64:7c:7f:e7:c9"},"BackendV6Data":{"VNI":1,"VtepMAC":"0e:0:0:0:0:1"}}'
            ),
        ),
        (
            LeaseAttrs(IP, IPV6, "host-gw"),
            b'{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"host-gw"}',
        ),
        (LeaseAttrs(IP, IPV6), b'{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1"}'),
    ],
    ids=["vxlan", "host-gw", "udp"],
)
async def test_one_key_and_one_value_say_both_families_byte_for_byte(attrs: LeaseAttrs, value: bytes) -> None:
    registry = MemoryRegistry()
    previous = Subnet(IPv4Network("10.1.15.0/24"), IPv6Network("fd00:1:0:2::/64"))
    lease = await soon(keeper_of(registry, attrs, previous).acquire(DUAL))
    assert lease.subnet == previous
    assert {key: entry.value for key, entry in registry.entries.items()} == {"10.1.15.0-24&fd00:1:0:2::-64": value}


async def test_ipv6_alone_writes_0_0_0_0_and_is_found_by_its_public_ipv6(file_registry: FileRegistry) -> None:
    first = await soon(keeper_of(file_registry, LeaseAttrs(None, IPV6), mark=7).acquire(ALONE))
    other = await soon(keeper_of(file_registry, LeaseAttrs(None, IPv6Address("2001:db8::2")), mark=7).acquire(ALONE))
    assert first.entry.key.startswith("0.0.0.0-0&fd00:1:0:")
    assert first.entry.value == b'{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::1"}'
    assert other.subnet != first.subnet
    again = await soon(keeper_of(file_registry, LeaseAttrs(None, IPV6), mark=7).acquire(ALONE))
    assert (again.subnet, len((await file_registry.list()).entries)) == (first.subnet, 2)


async def test_a_change_of_the_public_ipv6_rewrites_the_entry_and_loses_nothing() -> None:
    registry = MemoryRegistry()
    keeper = keeper_of(registry, LeaseAttrs(None, IPV6))
    lease = await soon(keeper.acquire(ALONE))
    async with kept(keeper) as keeping:
        keeper.set_attrs(LeaseAttrs(None, IPv6Address("2001:db8::9")))
        async with asyncio.timeout(PATIENCE_S):
            while b"2001:db8::9" not in registry.entries[lease.entry.key].value:
                await asyncio.sleep(0.001)
        assert not keeping.done()


async def test_who_has_our_key_under_another_public_ipv6_has_taken_it() -> None:
    registry = MemoryRegistry()
    keeper = keeper_of(registry, LeaseAttrs(None, IPV6))
    lease = await soon(keeper.acquire(ALONE))
    theirs = registry.put(lease.entry.key, b'{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::9"}')
    async with kept(keeper) as keeping:
        keeper.observe(theirs)
        assert await soon(keeping) == f"{lease.entry.key} was taken by 2001:db8::9"


async def test_of_two_hosts_that_write_one_part_under_two_keys_at_once_each_has_its_own_in_the_end() -> None:
    registry = MemoryRegistry()
    rivals = 0

    def write_first(call: str) -> None:
        """Be the other host: whatever is created, its IPv4 part is ours as well by then, three times."""
        nonlocal rivals
        if call == "list" and rivals < 3 and (created := [key for key in registry.entries if key.startswith("10.")]):
            taken = parse_key(created[-1])
            if registry.entries[created[-1]].value.startswith(b'{"PublicIP":"192.0.2.1"'):
                rivals += 1
                key = format_key(Subnet(taken.v4, IPv6Network(f"fd00:1:0:ff0{rivals}::/64")))
                registry.put(key, b'{"PublicIP":"192.0.2.9","PublicIPv6":"2001:db8::9"}')

    registry.before = write_first
    lease = await soon(keeper_of(registry, LeaseAttrs(IP, IPV6)).acquire(DUAL))
    assert rivals == 3
    others = [parse_key(key) for key, entry in registry.entries.items() if b"192.0.2.9" in entry.value]
    assert lease.subnet.v4 is not None
    assert not any(lease.subnet.v4.overlaps(other.v4) for other in others if other.v4)
    assert len(registry.entries) == 4  # what was given up again is gone


async def test_many_hosts_that_start_at_once_share_no_part(tmp_path: Path) -> None:
    few = parse_families(
        {
            "Network": "10.1.0.0/24",
            "SubnetLen": 28,
            "EnableIPv6": True,
            "IPv6Network": "fd00:1::/60",
            "IPv6SubnetLen": 64,
        }
    )

    async def start(n: int) -> Lease:
        registry = FileRegistry(tmp_path / "registry.json", mark=n)
        attrs = LeaseAttrs(IPv4Address(f"192.0.2.{n}"), IPv6Address(f"2001:db8::{n}"))
        keeper = LeaseKeeper(
            registry, attrs, MARGIN_S, forward_for_ever, mark=n, delays=QUICK, rng=random.Random(n % 2)
        )
        return await keeper.acquire(few)

    async with asyncio.timeout(PATIENCE_S):
        leases = await asyncio.gather(*(start(n) for n in range(1, 9)))
    for version in (4, 6):
        assert len({lease.subnet.of(version) for lease in leases}) == len(leases)


@pytest.mark.parametrize(
    ("config", "taken"),
    [
        (DUAL, Subnet(IPv4Network("10.1.15.0/24"), IPv6Network("fd00:1:0:2::/64"))),
        (parse_families({"Network": "10.1.0.0/16"}), Subnet(IPv4Network("10.1.15.0/24"))),
    ],
    ids=["both", "IPv4"],
)
async def test_a_lease_that_is_adopted_counts_by_the_families_that_are_on(config: NetworkConfig, taken: Subnet) -> None:
    registry = MemoryRegistry()
    entry = registry.put("10.1.15.0-24&fd00:1:0:2::-64", b'{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1"}', 0)
    assert keeper_of(registry, LeaseAttrs(IP, IPV6)).adopt(entry, None, config).subnet == taken
