"""Marks in the ids of etcd's leases: chosen by us, none left behind, none ended that is anybody else's."""

from __future__ import annotations

from flannel_udp.model import LEASE_TTL_S
from flannel_udp.options import EtcdOptions
from flannel_udp.registry.etcd.registry import EtcdRegistry
from tests.registry.support import etcdctl

KEY = "10.1.15.0-24"
VALUE = b'{"PublicIP":"192.0.2.1","PublicIPv6":null}'


async def test_restarts_of_one_host_leave_no_leases_behind_and_another_hosts_is_left_to_run_out(
    etcd_options: EtcdOptions,
) -> None:
    def leases() -> set[int]:
        return {int(line, 16) for line in etcdctl(etcd_options.endpoints[0], "lease", "list").splitlines()[1:]}

    before = leases()
    registry, other = EtcdRegistry(etcd_options, mark=0x1234), EtcdRegistry(etcd_options, mark=0x5678)
    entry = await registry.create(KEY, VALUE, LEASE_TTL_S)
    for _ in range(5):
        entry = await registry.take(entry, VALUE, LEASE_TTL_S)
    assert leases() - before == {entry.lease_id}
    theirs = await other.take(entry, VALUE, LEASE_TTL_S)
    assert leases() - before == {entry.lease_id, theirs.lease_id}
    # What somebody attached to a lease of ours is no reason to end it.
    name = f"{etcd_options.prefix}/somebody"
    etcdctl(etcd_options.endpoints[0], "put", f"--lease={theirs.lease_id:x}", name, "x")
    await other.take(theirs, VALUE, LEASE_TTL_S)
    assert etcdctl(etcd_options.endpoints[0], "get", name)
    await registry.close()
    await other.close()


async def test_a_lease_that_an_earlier_try_made_is_the_one_that_was_asked_for(
    etcd_options: EtcdOptions,
) -> None:
    registry = EtcdRegistry(etcd_options)
    client = registry._client
    lease_id = 0x1234 << 31 | 99
    assert await client.lease_grant(60, lease_id) == lease_id
    assert await client.lease_grant(60, lease_id) == lease_id
    await client.lease_revoke(lease_id)
    await registry.close()


async def test_a_lease_that_was_made_for_less_than_a_day_is_taken_for_as_long(etcd_options: EtcdOptions) -> None:
    registry = EtcdRegistry(etcd_options, mark=0x1234)
    short = etcdctl(etcd_options.endpoints[0], "lease", "grant", "600").split()[1]
    etcdctl(
        etcd_options.endpoints[0], "put", f"--lease={short}", f"{etcd_options.prefix}/subnets/{KEY}", VALUE.decode()
    )
    taken = await registry.take((await registry.list()).entries[KEY], VALUE, LEASE_TTL_S)
    assert taken.mark == 0x1234
    assert 590 <= (await registry.time_left_s(taken) or 0) <= 600
    await registry.close()
