"""Another backend on the same host: the entry says the new one under the same subnet, and what it said is known."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from flannel_udp.control.boottime import now_s
from flannel_udp.errors import RegistryError
from flannel_udp.model import LeaseAttrs
from tests.support.keepers import CONFIG, OUR_IP, OUR_VALUE, keeper_of, kept, soon
from tests.support.memory_registry import MemoryRegistry

KEY = "10.1.5.0-24"
HOST_GW_VALUE = b'{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"host-gw"}'
VXLAN_VALUE = (
    b'{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan",'
    b'"BackendData":{"VNI":1,"VtepMAC":"0e:00:00:00:00:01"}}'
)
VXLAN = LeaseAttrs(
    IPv4Address(OUR_IP), backend_type="vxlan", backend_data={"VNI": 1, "VtepMAC": "0e:00:00:00:00:01"}
)  # fmt: skip


@pytest.mark.parametrize("lease_id", [7, 0])
async def test_a_host_that_changes_its_backend_keeps_its_subnet_and_its_lease(lease_id: int) -> None:
    registry = MemoryRegistry()
    before = registry.put(KEY, OUR_VALUE, lease_id)
    lease = await soon(keeper_of(registry, backend_type="host-gw").acquire(CONFIG))
    assert list(registry.entries) == [KEY]
    entry = registry.entries[KEY]
    assert (entry.value, entry.lease_id, entry.revision) == (HOST_GW_VALUE, lease_id, before.revision + 1)
    assert (lease.entry, lease.attrs.backend_type) == (entry, "host-gw")
    assert {"create", "delete"}.isdisjoint(registry.calls)


async def test_what_our_entry_said_before_it_was_rewritten_is_known() -> None:
    registry = MemoryRegistry()
    registry.put(KEY, VXLAN_VALUE)
    keeper = keeper_of(registry)
    assert keeper.former is None
    await soon(keeper.acquire(CONFIG))
    assert registry.entries[KEY].value == OUR_VALUE
    assert keeper.former == VXLAN


async def test_it_is_known_also_when_the_rewrite_took_effect_and_its_answer_was_lost() -> None:
    registry = MemoryRegistry()
    registry.put(KEY, VXLAN_VALUE)

    def lose_answer(call: str) -> None:
        if call == "take" and registry.calls.count("take") == 1:
            registry.put(KEY, OUR_VALUE)
            raise RegistryError("connection reset")

    registry.before = lose_answer
    keeper = keeper_of(registry)
    await soon(keeper.acquire(CONFIG))
    assert registry.calls.count("list") == 2
    assert keeper.former == VXLAN


async def test_a_new_lease_has_no_former_one() -> None:
    registry = MemoryRegistry()
    keeper = keeper_of(registry)
    await soon(keeper.acquire(CONFIG))
    assert registry.calls.count("create") == 1
    assert keeper.former is None


async def test_what_could_not_be_read_is_no_former_lease() -> None:
    registry = MemoryRegistry()
    registry.given = registry.put(KEY, b"?", lease_id=0)  # a store that hands out subnets, and nothing written yet
    keeper = keeper_of(registry)
    await soon(keeper.acquire(CONFIG))
    assert registry.entries[KEY].value == OUR_VALUE
    assert keeper.former is None


async def test_the_former_lease_is_that_of_the_last_time_one_was_acquired() -> None:
    registry = MemoryRegistry()
    registry.put(KEY, VXLAN_VALUE)
    keeper = keeper_of(registry)
    await soon(keeper.acquire(CONFIG))
    async with kept(keeper) as task:
        registry.remove(KEY)
        keeper.observe(None)
        await soon(task)
    await soon(keeper.acquire(CONFIG))  # the same subnet, created anew
    assert (list(registry.entries), keeper.former) == ([KEY], None)


async def test_an_adopted_lease_has_no_former_one() -> None:
    registry = MemoryRegistry()
    keeper = keeper_of(registry)
    keeper.adopt(registry.put(KEY, OUR_VALUE), now_s() + 5_000)
    assert keeper.former is None
