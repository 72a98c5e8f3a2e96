"""What every registry promises (`flannel_udp.registry.Registry`), asked of each of them on each kind of event loop."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from flannel_udp.errors import ConfigMissing, LeaseLost, SubnetTaken
from flannel_udp.model import LEASE_TTL_S, Entry, Snapshot
from flannel_udp.options import EtcdOptions, KubeOptions, Options
from flannel_udp.registry import Registry
from flannel_udp.registry.open import open_registry
from tests.kube_api.server import ApiServer
from tests.registry.support import etcdctl, watching
from tests.support.patience import PATIENCE_S, promised

KEY = "10.1.15.0-24"
NODE = "h1"
MARK, OTHER_MARK = 0x1234ABCD, 0xFEDCBA98
OTHER_KEY = "10.1.16.0-24"
VALUE = b'{"PublicIP":"192.0.2.1","PublicIPv6":null}'
OTHER_VALUE = b'{"PublicIP":"192.0.2.2","PublicIPv6":null}'


class Store:
    """One store, reached through as many registries as there are hosts, and by hand."""

    def __init__(self, options: Options, kube_api: ApiServer | None) -> None:
        self._options = options
        self._kube_api = kube_api
        self._opened: list[Registry] = []

    def open(self, mark: int = 0) -> Registry:
        registry = open_registry(self._options, mark)
        self._opened.append(registry)
        return registry

    async def close(self) -> None:
        for registry in self._opened:
            await registry.close()

    def put_by_hand(self, key: str, value: bytes) -> None:
        """Write an entry without a lease, as an administrator would."""
        if self._kube_api is not None:
            fields = {"kube_subnet_manager": "true", "public_ip": json.loads(value)["PublicIP"]}
            self._kube_api.add_node(NODE, key.replace("-", "/"), **fields)
            return
        if self._options.registry == "etcd":
            etcd = self._options.etcd
            etcdctl(etcd.endpoints[0], "put", f"{etcd.prefix}/subnets/{key}", value.decode())
            return
        path = Path(self._options.registry.removeprefix("file:"))
        document = json.loads(path.read_text()) if path.exists() else {}
        document.setdefault("subnets", {})[key] = json.loads(value)
        path.write_text(json.dumps(document))


WITH_KUBERNETES = pytest.mark.parametrize("options", ["etcd", "file", "kube"], indirect=True)
"""For what is promised where the store hands out the subnets, too."""


@pytest.fixture
def kube_api(monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    monkeypatch.setenv("NODE_NAME", NODE)
    with ApiServer() as api:
        yield api


@pytest.fixture(params=["etcd", "file"])
def options(request: pytest.FixtureRequest, tmp_path: Path) -> Options:
    if request.param == "file":
        return Options(registry=f"file:{tmp_path / 'registry.json'}")
    if request.param == "kube":
        api: ApiServer = request.getfixturevalue("kube_api")
        return Options(kube=KubeOptions(subnet_mgr=True, api_url=api.url))
    etcd: EtcdOptions = request.getfixturevalue("etcd_options")
    return Options(registry="etcd", etcd=etcd)


@pytest.fixture
async def store(options: Options, request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    store = Store(options, request.getfixturevalue("kube_api") if options.kube.subnet_mgr else None)
    yield store
    await store.close()


@pytest.fixture
def registry(store: Store) -> Registry:
    return store.open()


@pytest.fixture
def other(store: Store) -> Registry:
    """The same store as another host sees it."""
    return store.open()


def said(entries: Mapping[str, Entry | None]) -> dict[str, tuple[bytes, bool] | None]:
    """Return what entries tell every host; a revision is only good for the registry that gave it out."""
    return {key: None if entry is None else (entry.value, entry.reserved) for key, entry in entries.items()}


# Configuration


async def test_a_missing_configuration_is_told_apart_from_a_store_that_fails(registry: Registry) -> None:
    with pytest.raises(ConfigMissing, match=r"holds no network configuration.*flannel-udp config put"):
        await registry.read_config()


async def test_the_configuration_that_was_written_is_read_by_another_host(registry: Registry, other: Registry) -> None:
    await registry.write_config(b'{"Network": "10.1.0.0/16", "SubnetLen": 25}')
    assert json.loads(await other.read_config()) == {"Network": "10.1.0.0/16", "SubnetLen": 25}


async def test_writing_the_configuration_leaves_the_subnets_alone(registry: Registry) -> None:
    entry = await registry.create(KEY, VALUE, LEASE_TTL_S)
    await registry.write_config(b'{"Network": "10.1.0.0/16"}')
    assert (await registry.list()).entries == {KEY: entry}


# Creating


@WITH_KUBERNETES
async def test_an_empty_store_lists_nothing(registry: Registry) -> None:
    assert (await registry.list()).entries == {}


async def test_a_created_entry_is_listed_as_it_was_returned(registry: Registry, other: Registry) -> None:
    entry = await registry.create(KEY, VALUE, LEASE_TTL_S)
    assert (entry.key, entry.value, entry.reserved) == (KEY, VALUE, False)
    assert (await registry.list()).entries == {KEY: entry}
    assert said((await other.list()).entries) == {KEY: (VALUE, False)}


async def test_a_fresh_lease_lives_a_day(registry: Registry) -> None:
    entry = await registry.create(KEY, VALUE, LEASE_TTL_S)
    assert await registry.time_left_s(entry) == pytest.approx(86_400, abs=10)


async def test_a_key_is_created_only_once(registry: Registry, other: Registry) -> None:
    entry = await registry.create(KEY, VALUE, LEASE_TTL_S)
    with pytest.raises(SubnetTaken, match=r"10\.1\.15\.0-24 is taken"):
        await other.create(KEY, OTHER_VALUE, LEASE_TTL_S)
    assert said((await other.list()).entries) == said({KEY: entry})


async def test_a_reserved_key_cannot_be_created(store: Store, registry: Registry) -> None:
    store.put_by_hand(KEY, VALUE)
    with pytest.raises(SubnetTaken):
        await registry.create(KEY, OTHER_VALUE, LEASE_TTL_S)


async def test_of_five_hosts_that_create_one_key_at_once_one_wins(store: Store) -> None:
    results = await asyncio.gather(
        *(store.open().create(KEY, VALUE, LEASE_TTL_S) for _ in range(5)), return_exceptions=True
    )
    assert sorted(type(result).__name__ for result in results) == ["Entry"] + 4 * ["SubnetTaken"]


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_a_lease_that_nobody_renews_expires_and_watchers_hear_of_it(registry: Registry, other: Registry) -> None:
    async with watching(other) as seen:
        await seen.snapshot()
        entry = await registry.create(KEY, VALUE, 10)  # the file is looked at now and then: it has to be seen
        assert said((await seen.change()).entries) == said({KEY: entry})
        assert said((await seen.change()).entries) == said({KEY: None})
    assert (await other.list()).entries == {}
    with pytest.raises(LeaseLost):
        await registry.time_left_s(entry)
    with pytest.raises(LeaseLost):
        await registry.renew(entry, VALUE, 60)
    await other.create(KEY, OTHER_VALUE, LEASE_TTL_S)


# Marks


async def test_a_lease_bears_the_mark_of_its_host_and_keeps_its_id_when_it_is_renewed(store: Store) -> None:
    registry, other = store.open(MARK), store.open(OTHER_MARK)
    entry = await registry.create(KEY, VALUE, LEASE_TTL_S)
    assert entry.mark == MARK
    assert (await registry.renew(entry, OTHER_VALUE, LEASE_TTL_S)).lease_id == entry.lease_id
    assert (await other.list()).entries[KEY].mark == MARK
    assert (await other.create(OTHER_KEY, VALUE, LEASE_TTL_S)).mark == OTHER_MARK


@pytest.mark.parametrize("mark", [MARK, OTHER_MARK])
async def test_an_entry_that_is_taken_is_under_a_new_lease_and_whoever_held_it_sees_that(
    store: Store, mark: int
) -> None:
    registry, other = store.open(MARK), store.open(mark)
    former = await registry.create(KEY, VALUE, LEASE_TTL_S)
    async with watching(registry) as seen:
        await seen.snapshot()
        taken = await other.take((await other.list()).entries[KEY], VALUE, LEASE_TTL_S)
        (shown,) = (await seen.change()).entries.values()
        assert shown is not None
        assert (shown.value, shown.lease_id) == (VALUE, taken.lease_id)
        assert shown.revision > former.revision
    assert (taken.mark, taken.value) == (mark, VALUE)
    assert taken.lease_id != former.lease_id
    assert await other.time_left_s(taken) == pytest.approx(LEASE_TTL_S, abs=10)
    for use in (registry.renew(former, VALUE, 60), registry.delete(former), registry.take(former, VALUE, 60)):
        with pytest.raises(LeaseLost):
            await use
    assert (await other.list()).entries == {KEY: taken}
    assert await other.renew(taken, VALUE, LEASE_TTL_S) == taken


async def test_a_reservation_that_is_taken_stays_one_and_bears_no_mark(store: Store) -> None:
    store.put_by_hand(KEY, VALUE)
    registry = store.open(MARK)
    taken = await registry.take((await registry.list()).entries[KEY], OTHER_VALUE, LEASE_TTL_S)
    assert (taken.value, taken.lease_id, taken.mark) == (OTHER_VALUE, 0, 0)


# Renewing


async def test_a_renewal_prolongs_the_lease_and_no_watcher_sees_it(registry: Registry, other: Registry) -> None:
    entry = await registry.create(KEY, VALUE, 60)
    async with watching(other) as seen:
        await seen.snapshot()
        await asyncio.sleep(3.0)
        before_s = await registry.time_left_s(entry)
        asked_s = time.monotonic()
        assert await registry.renew(entry, VALUE, 60) == entry
        after_s = await registry.time_left_s(entry)
        took_s = time.monotonic() - asked_s
        assert before_s is not None and after_s is not None
        assert after_s + took_s > before_s + 1  # a store may tell whole seconds only
        assert await seen.is_quiet(0.5)


async def test_a_renewal_with_another_value_is_one_change(registry: Registry, other: Registry) -> None:
    entry = await registry.create(KEY, VALUE, 60)
    async with watching(other) as seen:
        await seen.snapshot()
        renewed = await registry.renew(entry, OTHER_VALUE, 60)
        assert (renewed.value, renewed.reserved) == (OTHER_VALUE, False)
        assert said((await seen.change()).entries) == said({KEY: renewed})
    assert await registry.renew(renewed, OTHER_VALUE, 60) == renewed


async def test_every_write_of_a_key_makes_its_revision_grow(registry: Registry) -> None:
    first = await registry.create(KEY, VALUE, LEASE_TTL_S)
    second = await registry.renew(first, OTHER_VALUE, LEASE_TTL_S)
    third = await registry.renew(second, VALUE, LEASE_TTL_S)
    assert first.revision < second.revision < third.revision
    assert (await registry.list()).entries == {KEY: third}


async def test_a_renewal_never_takes_a_key_that_somebody_else_wrote(
    store: Store, registry: Registry, other: Registry
) -> None:
    entry = await registry.create(KEY, VALUE, LEASE_TTL_S)
    store.put_by_hand(KEY, OTHER_VALUE)
    with pytest.raises(LeaseLost, match="was written by somebody else"):
        await registry.renew(entry, VALUE, LEASE_TTL_S)
    with pytest.raises(LeaseLost, match="was written by somebody else"):
        await registry.renew(entry, b'{"PublicIP":"192.0.2.3","PublicIPv6":null}', LEASE_TTL_S)
    assert (await other.list()).entries[KEY].value == OTHER_VALUE


async def test_a_renewal_never_brings_a_deleted_key_back(registry: Registry, other: Registry) -> None:
    entry = await registry.create(KEY, VALUE, LEASE_TTL_S)
    await other.delete((await other.list()).entries[KEY])
    with pytest.raises(LeaseLost, match="is gone"):
        await registry.renew(entry, VALUE, LEASE_TTL_S)
    with pytest.raises(LeaseLost, match="is gone"):
        await registry.time_left_s(entry)
    assert (await registry.list()).entries == {}


async def test_a_key_that_went_to_another_host_is_lost(registry: Registry, other: Registry) -> None:
    entry = await registry.create(KEY, VALUE, LEASE_TTL_S)
    await registry.delete(entry)
    theirs = await other.create(KEY, OTHER_VALUE, LEASE_TTL_S)
    for use in (registry.renew(entry, VALUE, LEASE_TTL_S), registry.delete(entry), registry.time_left_s(entry)):
        with pytest.raises(LeaseLost):
            await use
    assert said((await other.list()).entries) == said({KEY: theirs})


# Reservations


@WITH_KUBERNETES
async def test_a_reservation_has_no_end(store: Store, registry: Registry) -> None:
    store.put_by_hand(KEY, VALUE)
    entry = (await registry.list()).entries[KEY]
    assert entry.reserved
    assert await registry.time_left_s(entry) is None


@WITH_KUBERNETES
@pytest.mark.parametrize("value", [VALUE, OTHER_VALUE], ids=["same value", "other value"])
async def test_a_reservation_that_is_renewed_stays_one(store: Store, registry: Registry, value: bytes) -> None:
    store.put_by_hand(KEY, VALUE)
    renewed = await registry.renew((await registry.list()).entries[KEY], value, LEASE_TTL_S)
    assert renewed.reserved
    assert (await registry.list()).entries == {KEY: renewed}
    assert renewed.value == value


# Deleting


async def test_a_free_subnet_is_reserved_once_and_never_ends(registry: Registry, other: Registry) -> None:
    entry = await registry.reserve(KEY, VALUE, None)
    assert (entry.key, entry.value, entry.lease_id) == (KEY, VALUE, 0)
    assert said((await other.list()).entries) == said({KEY: entry})
    assert await registry.time_left_s(entry) is None
    for use in (other.reserve(KEY, OTHER_VALUE, None), other.create(KEY, OTHER_VALUE, LEASE_TTL_S)):
        with pytest.raises(SubnetTaken, match=KEY):
            await use
    assert said((await other.list()).entries) == said({KEY: entry})


async def test_a_lease_that_is_made_a_reservation_is_its_hosts_still(store: Store, other: Registry) -> None:
    registry = store.open(MARK)
    lease = await registry.create(KEY, VALUE, 60)
    reserved = await other.reserve(KEY, VALUE, (await other.list()).entries[KEY])
    assert reserved.reserved
    with pytest.raises(LeaseLost):
        await registry.renew(lease, VALUE, LEASE_TTL_S)
    renewed = await registry.renew((await registry.list()).entries[KEY], OTHER_VALUE, LEASE_TTL_S)
    assert (renewed.reserved, renewed.value) == (True, OTHER_VALUE)


async def test_an_entry_that_has_changed_is_not_made_a_reservation(registry: Registry, other: Registry) -> None:
    stale = await registry.create(KEY, VALUE, LEASE_TTL_S)
    current = await other.renew((await other.list()).entries[KEY], OTHER_VALUE, LEASE_TTL_S)
    with pytest.raises(LeaseLost, match=rf"{KEY} was written by somebody else"):
        await registry.reserve(KEY, VALUE, stale)
    await other.delete(current)
    with pytest.raises(LeaseLost, match=rf"{KEY} is gone"):
        await registry.reserve(KEY, VALUE, stale)
    assert (await other.list()).entries == {}


async def test_it_is_told_of_many_entries_when_they_end(store: Store, registry: Registry) -> None:
    store.put_by_hand(OTHER_KEY, OTHER_VALUE)
    lease = await registry.create(KEY, VALUE, 3600)
    gone = replace(lease, key="10.1.17.0-24", lease_id=lease.lease_id + 1)
    told: list[int] = []
    left = await registry.times_left_s([*(await registry.list()).entries.values(), gone], told.append)
    assert left.keys() == {KEY, OTHER_KEY}
    assert left[OTHER_KEY] is None
    assert 3500 < (left[KEY] or 0) <= 3601  # the file rounds up to whole seconds
    assert told


async def test_a_deleted_entry_is_gone_and_cannot_be_deleted_again(registry: Registry, other: Registry) -> None:
    entry = await registry.create(KEY, VALUE, LEASE_TTL_S)
    await registry.delete(entry)
    assert (await other.list()).entries == {}
    with pytest.raises(LeaseLost, match="is gone"):
        await registry.delete(entry)


async def test_an_entry_that_has_changed_is_not_deleted(registry: Registry, other: Registry) -> None:
    stale = await registry.create(KEY, VALUE, LEASE_TTL_S)
    renewed = await registry.renew(stale, OTHER_VALUE, LEASE_TTL_S)
    with pytest.raises(LeaseLost, match="was written by somebody else"):
        await registry.delete(stale)
    assert said((await other.list()).entries) == said({KEY: renewed})


# Moving

WIDER_KEY = f"{KEY}&fd00:1:2::-64"


async def test_an_entry_that_moves_is_one_change_and_keeps_its_lease(registry: Registry, other: Registry) -> None:
    entry = await registry.create(KEY, VALUE, LEASE_TTL_S)
    left_s = await registry.time_left_s(entry)
    async with watching(other) as seen:
        await seen.snapshot()
        moved = await registry.move(entry, WIDER_KEY, OTHER_VALUE)
        assert said((await seen.change()).entries) == {KEY: None, WIDER_KEY: (OTHER_VALUE, False)}
    assert (moved.key, moved.value, moved.lease_id) == (WIDER_KEY, OTHER_VALUE, entry.lease_id)
    assert (await registry.list()).entries == {WIDER_KEY: moved}
    assert await registry.time_left_s(moved) == pytest.approx(left_s, abs=10)
    renewed = await registry.renew(moved, OTHER_VALUE, LEASE_TTL_S)
    await registry.delete(renewed)


async def test_who_moves_an_entry_hears_of_both_keys_as_well(registry: Registry) -> None:
    entry = await registry.create(KEY, VALUE, LEASE_TTL_S)
    async with watching(registry) as seen:
        await seen.snapshot()
        moved = await registry.move(entry, WIDER_KEY, VALUE)
        assert (await seen.change()).entries == {KEY: None, WIDER_KEY: moved}


async def test_an_entry_never_moves_to_a_key_that_is_taken_nor_after_it_has_changed(
    registry: Registry, other: Registry
) -> None:
    entry = await registry.create(KEY, VALUE, LEASE_TTL_S)
    theirs = await other.create(WIDER_KEY, OTHER_VALUE, LEASE_TTL_S)
    with pytest.raises(SubnetTaken, match="is taken by another host"):
        await registry.move(entry, WIDER_KEY, VALUE)
    assert said((await other.list()).entries) == said({KEY: entry, WIDER_KEY: theirs})
    await other.delete(theirs)
    await other.renew((await other.list()).entries[KEY], OTHER_VALUE, LEASE_TTL_S)
    with pytest.raises(LeaseLost, match="was written by somebody else"):
        await registry.move(entry, WIDER_KEY, VALUE)
    await other.delete((await other.list()).entries[KEY])
    with pytest.raises(LeaseLost, match="is gone"):
        await registry.move(entry, WIDER_KEY, VALUE)
    assert (await other.list()).entries == {}


# Watching


async def test_a_watch_begins_with_what_is_there_and_goes_on_with_what_changes(
    registry: Registry, other: Registry
) -> None:
    first = await registry.create(KEY, VALUE, LEASE_TTL_S)
    async with watching(other) as seen:
        assert said((await seen.snapshot()).entries) == said({KEY: first})
        second = await registry.create(OTHER_KEY, OTHER_VALUE, LEASE_TTL_S)
        assert said((await seen.change()).entries) == said({OTHER_KEY: second})
        await registry.delete(first)
        assert said((await seen.change()).entries) == said({KEY: None})


async def test_a_change_made_while_the_consumer_was_busy_is_not_missed(registry: Registry, other: Registry) -> None:
    async with aclosing(other.watch()) as items:
        first = await anext(items)
        assert isinstance(first, Snapshot)
        entry = await registry.create(KEY, VALUE, LEASE_TTL_S)
        second = await asyncio.wait_for(anext(items), PATIENCE_S)
        assert said(second.entries) == said({KEY: entry})


async def test_the_configuration_is_no_change_of_the_subnets(registry: Registry, other: Registry) -> None:
    async with watching(other) as seen:
        await seen.snapshot()
        await registry.write_config(b'{"Network": "10.1.0.0/16"}')
        assert await seen.is_quiet(0.5)


async def test_entries_that_make_no_sense_are_handed_on_untouched(store: Store, registry: Registry) -> None:
    store.put_by_hand("no subnet", b'{"x":[1]}')
    store.put_by_hand(KEY, b'"no object"')
    entries = (await registry.list()).entries
    assert {key: entry.value for key, entry in entries.items()} == {"no subnet": b'{"x":[1]}', KEY: b'"no object"'}


@WITH_KUBERNETES
async def test_a_watch_ends_at_once_when_its_task_is_cancelled(registry: Registry) -> None:
    for _ in range(2):
        async with watching(registry) as seen:
            await seen.snapshot()
            began_s = time.monotonic()
        assert time.monotonic() - began_s < promised(2.0)


async def test_five_hosts_that_pick_the_first_free_subnet_get_five_subnets(store: Store) -> None:
    async def acquire(registry: Registry, address: int) -> Entry:
        value = f'{{"PublicIP":"192.0.2.{address}","PublicIPv6":null}}'.encode()
        while True:
            taken = (await registry.list()).entries
            key = next(f"10.1.{n}.0-24" for n in range(1, 256) if f"10.1.{n}.0-24" not in taken)
            try:
                return await registry.create(key, value, LEASE_TTL_S)
            except SubnetTaken:
                continue

    entries = await asyncio.gather(*(acquire(store.open(), address) for address in range(1, 6)))
    assert sorted(entry.key for entry in entries) == [f"10.1.{n}.0-24" for n in range(1, 6)]
