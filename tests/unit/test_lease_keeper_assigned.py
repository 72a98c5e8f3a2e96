"""Where the registry hands out the subnets (Kubernetes), the host takes its own and never another."""

from __future__ import annotations

import asyncio
import random
from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest

from flannel_udp.control.allocation import Decision, accept_assigned
from flannel_udp.control.lease import LeaseKeeper
from flannel_udp.control.retry import Delays
from flannel_udp.errors import RegistryError
from flannel_udp.model import Entry, LeaseAttrs, Subnet
from tests.support.backends import parse_config, parse_families
from tests.support.keepers import forward_for_ever
from tests.support.memory_registry import MemoryRegistry
from tests.support.patience import PATIENCE_S

CONFIG = parse_config('{"Network": "10.1.0.0/16"}').config
VALUE = b'{"PublicIP":"192.0.2.1","PublicIPv6":null}'
QUICK = Delays(first_retry_s=0.01, last_retry_s=0.02, renew_retry_s=0.03)


def assigned(key: str) -> Entry:
    return Entry(key, b"", 5)


@pytest.mark.parametrize("subnet", ["10.1.7.0/24", "10.1.0.0/24", "10.1.7.64/26", "10.1.0.0/17"])
def test_any_part_of_the_network_is_taken(subnet: str) -> None:
    """Also the first subnet and other lengths, which flannel's own allocation never picks."""
    entry = assigned(subnet.replace("/", "-"))
    assert accept_assigned(CONFIG, entry, (4,)) == Decision(Subnet(IPv4Network(subnet)), reuse=entry)


def test_a_host_without_an_ipv6_address_takes_its_ipv4_part_alone() -> None:
    config = parse_families({"Network": "10.1.0.0/16", "EnableIPv6": True, "IPv6Network": "fd00:1::/48"})
    entry = assigned("10.1.7.0-24&fd00:1:0:7::-64")
    v4, v6 = IPv4Network("10.1.7.0/24"), IPv6Network("fd00:1:0:7::/64")
    assert accept_assigned(config, entry, (4, 6)) == Decision(Subnet(v4, v6), reuse=entry)
    assert accept_assigned(config, entry, (4,)) == Decision(Subnet(v4), reuse=entry)


@pytest.mark.parametrize(
    ("key", "fault"),
    [
        ("10.2.0.0-24", "10.2.0.0/24 is outside the overlay network 10.1.0.0/16: make the two agree"),
        (
            "10.1.0.0-16",
            "10.1.0.0/16 is as wide as the overlay network 10.1.0.0/16 or wider: make Network wider than that",
        ),
        ("10.0.0.0-8", "10.0.0.0/8 is as wide as the overlay network 10.1.0.0/16 or wider: make Network wider than"),
        ("10.2.0.0-16", "10.2.0.0/16 is as wide as the overlay network 10.1.0.0/16 or wider: make the two agree"),
        ("0.0.0.0-0&fd00:1::-64", "'0.0.0.0-0&fd00:1::-64' has no part of a family that is on: make the two agree"),
        ("nonsense", "subnet key 'nonsense' does not look like"),
    ],
)
def test_what_is_no_part_of_the_network_is_refused(key: str, fault: str) -> None:
    with pytest.raises(RegistryError) as caught:
        accept_assigned(CONFIG, assigned(key), (4,))
    assert str(caught.value).startswith(f"the subnet assigned to this host is of no use: {fault}")


def test_what_is_as_wide_by_ipv6_is_told_which_network_has_to_be_wider() -> None:
    config = parse_families({"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": "fd00:1::/48"})
    with pytest.raises(RegistryError, match=r"fd00:1::/48 or wider: make IPv6Network wider than that$"):
        accept_assigned(config, assigned("0.0.0.0-0&fd00:1::-48"), (6,))


async def test_the_keeper_takes_what_is_assigned_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    registry = MemoryRegistry()
    registry.put("10.1.9.0-24", VALUE)  # a lease with our public IP, as etcd's way of knowing us would find it
    registry.given = registry.put("10.2.0.0-24", b"", lease_id=0)
    keeper = LeaseKeeper(
        registry, LeaseAttrs(IPv4Address("192.0.2.1")), 3600.0, forward_for_ever,
        previous=Subnet(IPv4Network("10.1.8.0/24")), delays=QUICK, rng=random.Random(1),
    )  # fmt: skip
    acquiring = asyncio.create_task(keeper.acquire(CONFIG))
    async with asyncio.timeout(PATIENCE_S):
        while "make the two agree" not in caplog.text:
            await asyncio.sleep(0.001)
    registry.given = registry.put("10.1.77.0-24", b"", lease_id=0)
    lease = await asyncio.wait_for(acquiring, PATIENCE_S)
    assert lease.subnet == Subnet(IPv4Network("10.1.77.0/24"))
    assert (lease.entry.value, lease.entry.reserved, keeper.left_s) == (VALUE, True, None)
    assert {"list", "create", "delete"}.isdisjoint(registry.calls)
