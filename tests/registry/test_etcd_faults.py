"""Three members of which one fails: the watch tells what a listing tells within 5 s of the store being reachable."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress

import pytest

from flannel_udp.errors import LeaseLost
from flannel_udp.lab.etcd_server import EtcdServer
from flannel_udp.model import Entry, Snapshot
from flannel_udp.options import EtcdOptions
from flannel_udp.registry.etcd.registry import EtcdRegistry
from tests.registry.support import FirstStays, created, once_connected, said
from tests.support.etcd_cluster import EtcdCluster, go_on, stop
from tests.support.patience import PATIENCE_S, promised

VALUE = b'{"PublicIP":"192.0.2.1","PublicIPv6":null}'
CONVERGED_S = 5.0

_numbers = itertools.count(1)


@pytest.fixture(autouse=True)
def patient_connections() -> None:
    """Connections are given up as in life: how soon a watch goes on is what is promised here."""


@pytest.fixture(scope="module")
def cluster(needs_etcd: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    with EtcdCluster(tmp_path_factory.mktemp("cluster") / "etcd") as members:
        yield members


class Table:
    """What a watch has told so far."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.emptied = False
        self.began = asyncio.Event()

    async def follow(self, registry: EtcdRegistry) -> None:
        async for event in registry.watch():
            if isinstance(event, Snapshot):
                self.entries.clear()
            self.entries.update({key: entry for key, entry in event.entries.items() if entry is not None})
            for key in [key for key, entry in event.entries.items() if entry is None]:
                self.entries.pop(key, None)
            self.emptied = self.emptied or (self.began.is_set() and not self.entries)
            self.began.set()

    async def has(self, key: str, within_s: float = CONVERGED_S) -> None:
        async with asyncio.timeout(promised(within_s)):
            while key not in self.entries:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def watched(registry: EtcdRegistry) -> AsyncIterator[Table]:
    table = Table()
    task = asyncio.create_task(table.follow(registry))
    try:
        await asyncio.wait_for(table.began.wait(), PATIENCE_S)
        yield table
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait({task})
        await registry.close()


def options_of(members: list[EtcdServer]) -> EtcdOptions:
    return EtcdOptions(endpoints=tuple(member.endpoint for member in members), prefix=f"/faults/{next(_numbers)}")


def first(member: EtcdServer, cluster: EtcdCluster) -> list[EtcdServer]:
    """Return all members, this one first: the watch uses it."""
    return [member, *(other for other in cluster.members if other is not member)]


async def delete(registry: EtcdRegistry, entry: Entry) -> None:
    """Delete a key; while the members elect a leader that may take some tries."""

    async def once() -> None:
        with suppress(LeaseLost):  # to us: the answer was lost
            await registry.delete(entry)

    await once_connected(once)


@pytest.mark.parametrize("role", ["leader", "follower"])
@pytest.mark.parametrize("fault", [EtcdServer.kill, stop], ids=["killed", "stopped"])
async def test_a_member_that_fails_costs_less_than_five_seconds(
    cluster: EtcdCluster, role: str, fault: Callable[[EtcdServer], None]
) -> None:
    member = cluster.leader() if role == "leader" else cluster.follower()
    options = options_of(first(member, cluster))
    others = EtcdRegistry(EtcdOptions(endpoints=options.endpoints[1:], prefix=options.prefix))
    async with watched(EtcdRegistry(options, rng=FirstStays())) as table:
        await created(others, "10.1.1.0-24", VALUE)
        await table.has("10.1.1.0-24")
        try:
            fault(member)
            await created(others, "10.1.2.0-24", VALUE)  # the store can be reached, as this shows
            reachable_s = time.monotonic()
            await table.has("10.1.2.0-24")
            print(f"{role} {fault.__name__}: {time.monotonic() - reachable_s:.1f} s")  # noqa: T201 - pytest -s shows it
            assert not table.emptied
        finally:
            if fault is stop:
                go_on(member)
            else:
                await asyncio.to_thread(cluster.restart, member)
            await others.close()


async def test_history_compacted_while_the_watch_was_cut_off(
    cluster: EtcdCluster, caplog: pytest.LogCaptureFixture
) -> None:
    member, leader = cluster.follower(), cluster.leader()
    options = options_of([member])  # no other endpoint to go to
    others = EtcdRegistry(EtcdOptions(endpoints=(leader.endpoint,), prefix=options.prefix))
    async with watched(EtcdRegistry(options, rng=FirstStays())) as table:
        entry = await created(others, "10.1.1.0-24", VALUE)
        await table.has("10.1.1.0-24")
        stop(member)
        try:
            await delete(others, entry)
            await created(others, "10.1.2.0-24", VALUE)
            await asyncio.to_thread(cluster.compact, leader)
            await said(caplog, "watching the subnets")
            assert list(table.entries) == ["10.1.1.0-24"]  # what cannot be reached removes no peer
        finally:
            go_on(member)
        await table.has("10.1.2.0-24")
        assert list(table.entries) == ["10.1.2.0-24"]
        await others.close()


async def test_all_members_wiped_is_an_empty_listing(cluster: EtcdCluster, caplog: pytest.LogCaptureFixture) -> None:
    options = options_of(cluster.members)
    registry = EtcdRegistry(options)
    async with watched(registry) as table:
        await created(registry, "10.1.1.0-24", VALUE)
        await table.has("10.1.1.0-24")
        for member in cluster.members:
            member.kill()
            cluster.wipe(member)
        await said(caplog, "watching the subnets")
        assert list(table.entries) == ["10.1.1.0-24"]
        await asyncio.to_thread(cluster.__enter__)
        async with asyncio.timeout(promised(CONVERGED_S)):
            while table.entries:
                await asyncio.sleep(0.01)
        await created(registry, "10.1.2.0-24", VALUE)
        await table.has("10.1.2.0-24")
