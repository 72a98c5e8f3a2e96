"""A registry that was restored from a backup, or replaced by an older file: our key is as it was before our last write.

That is nobody's claim. Who writes the key after us, also after the backup was restored, is one.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flannel_udp.errors import RegistryError
from flannel_udp.model import Entry, Snapshot, lease_id_of
from flannel_udp.registry.file.registry import FileRegistry
from tests.support.keepers import (
    CONFIG,
    OTHER_MARK,
    OTHER_VALUE,
    OUR_MARK,
    OUR_VALUE,
    eventually,
    keeper_of,
    kept,
    soon,
)
from tests.support.memory_registry import MemoryRegistry

KEY = "10.1.5.0-24"
DAY_S = 86_400


def of_an_earlier_run(registry: MemoryRegistry, mark: int = OUR_MARK) -> Entry:
    """Have the registry hold what an earlier run of ours wrote, and many writes of others since."""
    former = Entry(KEY, OUR_VALUE, 4, lease_id_of(mark, 99))
    registry.entries[KEY], registry.revision = former, 100
    return former


def restore(registry: MemoryRegistry, *entries: Entry, revision: int = 5) -> None:
    """Let the registry be as it was, and go on from there."""
    registry.entries = {entry.key: entry for entry in entries}
    registry.revision = revision
    registry.tell(Snapshot(registry.entries, revision))


@pytest.mark.parametrize("mark", [OUR_MARK, OTHER_MARK], ids=["an earlier run's", "of before it was installed anew"])
@pytest.mark.parametrize("grown_to", [5, 5_000], ids=["just restored", "and much was written since"])
async def test_an_entry_from_before_our_own_is_taken_again_and_nothing_stops(
    mark: int, grown_to: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    registry = MemoryRegistry(OUR_MARK)
    former = of_an_earlier_run(registry, mark)
    told: list[float | None] = []
    keeper = keeper_of(registry, forward_until=told.append, mark=OUR_MARK)
    lease = await soon(keeper.acquire(CONFIG))
    async with kept(keeper) as task:
        restore(registry, former, revision=grown_to)
        keeper.observe(former)
        await eventually(registry, "take", 2)
        await eventually(registry, "time_left_s", 2)
        await asyncio.sleep(0)
        assert not task.done()
        assert keeper.lease is not None
        now = keeper.lease.entry
        assert registry.entries == {KEY: now}
        assert now.mark == OUR_MARK
        assert now.lease_id not in (former.lease_id, lease.entry.lease_id)
        keeper.observe(now)
        await asyncio.sleep(0)
    assert 0.0 not in told
    assert (keeper.claimed, keeper.counts.lost) == (False, 0)
    failed, works = (line for line in caplog.messages if line.startswith("renewing the subnet"))
    why = f"{KEY} in the registry is older than what we wrote: restored from a backup?"
    assert failed == f"renewing the subnet failed: {why} (taking it again)"
    assert works == "renewing the subnet: works now"


class ShowsBeforeItAnswers(MemoryRegistry):
    """A watch that is faster than the answers; those to the first `lost` of them never come."""

    def __init__(self, observe: Callable[[Entry | None], None], lost: int) -> None:
        super().__init__(OUR_MARK)
        self.observe = observe
        self.lost = lost

    async def take(self, entry: Entry, value: bytes, ttl_s: int) -> Entry:
        taken = await super().take(entry, value, ttl_s)
        self.observe(taken)
        await asyncio.sleep(0.01)
        self.lost -= 1
        if self.lost >= 0:
            raise RegistryError("no answer in time")
        return taken


@pytest.mark.parametrize("lost", [0, 1, 3])
async def test_what_we_took_again_is_no_claim_though_the_watch_shows_it_before_we_are_told(lost: int) -> None:
    registry = ShowsBeforeItAnswers(lambda _seen: None, 0)
    former = of_an_earlier_run(registry)
    keeper = keeper_of(registry, mark=OUR_MARK)
    await soon(keeper.acquire(CONFIG))
    registry.observe, registry.lost = keeper.observe, lost
    async with kept(keeper) as task:
        restore(registry, former)
        keeper.observe(former)
        await eventually(registry, "take", 2 + lost)
        await eventually(registry, "time_left_s", 3)
        await asyncio.sleep(0.05)
        assert not task.done()
        assert keeper.lease is not None
        assert registry.entries == {KEY: keeper.lease.entry}
        # From now on what is written under our mark is a copy's.
        keeper.observe(registry.put(KEY, OUR_VALUE, lease_id_of(OUR_MARK, 1)))
        assert "a copy of this host" in await soon(task)


async def test_another_hosts_write_while_we_take_it_again_is_a_claim() -> None:
    registry = MemoryRegistry(OUR_MARK)
    former = of_an_earlier_run(registry)
    keeper = keeper_of(registry, mark=OUR_MARK)
    await soon(keeper.acquire(CONFIG))

    def overtake(call: str) -> None:
        if call == "take":
            registry.before = lambda _call: None
            keeper.observe(registry.put(KEY, OUR_VALUE, lease_id_of(OTHER_MARK, 1)))

    async with kept(keeper) as task:
        restore(registry, former, revision=1_000)
        registry.before = overtake
        keeper.observe(former)
        assert "another host claims our address" in await soon(task)


async def test_what_is_older_and_was_rewritten_before_we_took_it_again_is_lost() -> None:
    registry = MemoryRegistry(OUR_MARK)
    former = of_an_earlier_run(registry)
    keeper = keeper_of(registry, mark=OUR_MARK)
    await soon(keeper.acquire(CONFIG))

    def overtake(call: str) -> None:
        if call == "take":
            registry.before = lambda _call: None
            registry.put(KEY, OTHER_VALUE, lease_id_of(OTHER_MARK, 1))

    async with kept(keeper) as task:
        restore(registry, former)
        registry.before = overtake
        keeper.observe(former)
        assert "not as we wrote it" in await soon(task)
    assert registry.entries[KEY].value == OTHER_VALUE


@pytest.mark.parametrize("revision", [101, 102, 5_000], ids=["at our own revision", "after it", "long after it"])
async def test_a_rivals_write_after_the_restore_is_a_claim(revision: int) -> None:
    registry = MemoryRegistry(OUR_MARK)
    of_an_earlier_run(registry)
    keeper = keeper_of(registry, mark=OUR_MARK)
    assert (await soon(keeper.acquire(CONFIG))).entry.revision == 101
    claim = Entry(KEY, OUR_VALUE, revision, lease_id_of(OUR_MARK, 1))
    async with kept(keeper) as task:
        restore(registry, claim, revision=revision)
        keeper.observe(claim)
        assert "a copy of this host, or a second agent on it, claims our address" in await soon(task)
    assert keeper.claimed
    assert registry.entries == {KEY: claim}


async def test_a_subnet_that_is_another_hosts_in_the_backup_is_left_to_it() -> None:
    registry = MemoryRegistry(OUR_MARK)
    registry.revision = 100
    keeper = keeper_of(registry, previous="10.1.5.0/24", mark=OUR_MARK)
    await soon(keeper.acquire(CONFIG))
    theirs = Entry(KEY, OTHER_VALUE, 4, lease_id_of(OTHER_MARK, 99))
    async with kept(keeper) as task:
        restore(registry, theirs)
        keeper.observe(theirs)
        assert f"{KEY} was taken by 192.0.2.9" in await soon(task)
    assert registry.entries == {KEY: theirs}
    assert not keeper.claimed


# The file registry has no revisions but those that a process counts, and the time at which each lease ends.

HOUR_S = 3600


def document(owner: str, ends_in_s: float) -> str:
    """Return a file with our entry, of that owner."""
    ends = (datetime.now(UTC) + timedelta(seconds=ends_in_s)).strftime("%Y-%m-%dT%H:%M:%SZ")
    fields = json.loads(OUR_VALUE) | {"Owner": owner, "Expires": ends}
    return json.dumps({"config": {"Network": "10.1.0.0/16"}, "subnets": {KEY: fields}})


async def test_a_registry_file_that_is_replaced_by_an_older_one_stops_nothing(tmp_path: Path) -> None:
    path = tmp_path / "registry.json"
    path.write_text(document(f"{OUR_MARK:08x}-00000063", 2 * HOUR_S))
    backup = path.read_text()
    registry = FileRegistry(path, OUR_MARK)
    keeper = keeper_of(registry, mark=OUR_MARK)
    lease = await soon(keeper.acquire(CONFIG))
    async with kept(keeper) as task:
        path.write_text(backup)
        keeper.observe((await registry.list()).entries[KEY])
        while json.loads(path.read_text())["subnets"][KEY]["Expires"] == json.loads(backup)["subnets"][KEY]["Expires"]:
            await asyncio.sleep(0.01)
            assert not task.done()
        seen = (await registry.list()).entries[KEY]
        assert seen.lease_id != lease.entry.lease_id
        assert seen.revision > lease.entry.revision
        keeper.observe(seen)
        await asyncio.sleep(0.1)
        assert not task.done()


@pytest.mark.parametrize("mark", [OUR_MARK, OTHER_MARK])
async def test_who_takes_the_subnet_in_a_file_after_us_claims_it(mark: int, tmp_path: Path) -> None:
    path = tmp_path / "registry.json"
    path.write_text(document(f"{OUR_MARK:08x}-00000063", 2 * HOUR_S))
    registry = FileRegistry(path, OUR_MARK)
    keeper = keeper_of(registry, mark=OUR_MARK)
    await soon(keeper.acquire(CONFIG))
    async with kept(keeper) as task:
        path.write_text(document(f"{mark:08x}-00000001", 24 * HOUR_S + 2))
        keeper.observe((await registry.list()).entries[KEY])
        assert "claims our address" in await soon(task)


async def test_what_a_process_that_takes_over_sees_after_the_other_ones_write_is_newer(tmp_path: Path) -> None:
    path = tmp_path / "registry.json"
    path.write_text(document(f"{OUR_MARK:08x}-00000063", 2 * HOUR_S))
    former = FileRegistry(path, OUR_MARK)
    for value in (OTHER_VALUE, OUR_VALUE):
        entry = await former.renew((await former.list()).entries[KEY], value, DAY_S)
    registry = FileRegistry(path, OUR_MARK)
    registry.adopt(entry)
    assert (await registry.list()).entries == {KEY: entry}
    path.write_text(document(f"{OTHER_MARK:08x}-00000001", 24 * HOUR_S + 2))
    assert (await registry.list()).entries[KEY].revision > entry.revision
