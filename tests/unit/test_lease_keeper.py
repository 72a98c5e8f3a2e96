"""The lease's life: acquired, renewed in time, never taken from somebody else, given up when lost."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from flannel_udp.control.boottime import now_s
from flannel_udp.control.lease import LeaseKeeper
from flannel_udp.control.lease_safety import renew_delay_s, safety_s
from flannel_udp.control.lease_seeking import RACES
from flannel_udp.control.retry import Delays
from flannel_udp.errors import RegistryDenied, RegistryError
from flannel_udp.model import LEASE_TTL_S, LeaseAttrs
from flannel_udp.registry.file.registry import FileRegistry
from tests.support.backends import parse_config
from tests.support.keepers import (
    CONFIG,
    MARGIN_S,
    OTHER_VALUE,
    OUR_IP,
    OUR_MARK,
    OUR_VALUE,
    QUICK,
    AtOnce,
    eventually,
    forward_for_ever,
    keeper_of,
    kept,
    soon,
)
from tests.support.memory_registry import MemoryRegistry
from tests.support.patience import PATIENCE_S

NARROW = parse_config('{"Network": "10.1.0.0/16", "SubnetMin": "10.1.5.0", "SubnetMax": "10.1.6.0"}').config


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "registry.json"


def subnets_in(path: Path) -> dict[str, dict[str, object]]:
    subnets: dict[str, dict[str, object]] = json.loads(path.read_bytes())["subnets"]
    return subnets


# --- Acquire ------------------------------------------------------------------------------------------------------


async def test_a_new_lease_is_created_for_a_day_with_flannels_value(path: Path) -> None:
    keeper = keeper_of(FileRegistry(path))
    lease = await soon(keeper.acquire(CONFIG))
    assert keeper.lease == lease
    assert CONFIG.fits(lease.subnet)
    assert keeper.left_s == pytest.approx(LEASE_TTL_S, abs=10)
    (fields,) = subnets_in(path).values()
    assert fields.pop("Expires")
    assert fields == {"PublicIP": OUR_IP, "PublicIPv6": None}


async def test_after_a_kill_the_same_subnet_is_taken_again(path: Path) -> None:
    first = await soon(keeper_of(FileRegistry(path)).acquire(CONFIG))
    second = await soon(keeper_of(FileRegistry(path)).acquire(CONFIG))
    assert second.subnet == first.subnet
    assert len(subnets_in(path)) == 1


async def test_the_subnet_of_subnet_env_is_taken_when_it_is_free(path: Path) -> None:
    lease = await soon(keeper_of(FileRegistry(path), previous="10.1.77.0/24").acquire(CONFIG))
    assert str(lease.subnet) == "10.1.77.0/24"


async def test_a_reservation_is_taken_and_stays_permanent(path: Path) -> None:
    path.write_text('{"subnets": {"10.1.33.0-24": {"PublicIP": "192.0.2.1"}}}')
    keeper = keeper_of(FileRegistry(path))
    lease = await soon(keeper.acquire(CONFIG))
    assert (str(lease.subnet), lease.entry.reserved, keeper.left_s) == ("10.1.33.0/24", True, None)
    assert subnets_in(path) == {"10.1.33.0-24": {"PublicIP": OUR_IP, "PublicIPv6": None}}


@pytest.mark.parametrize("marked", [True, False])
async def test_a_lease_under_our_address_that_does_not_fit_is_deleted_only_if_it_bears_our_mark(
    path: Path, marked: bool
) -> None:
    owner = {"Owner": f"{OUR_MARK if marked else 1:08x}-00000007"}
    expires = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    unfit = {"PublicIP": OUR_IP, "Expires": expires} | owner
    path.write_text(json.dumps({"subnets": {"10.9.0.0-24": unfit}}))
    lease = await soon(keeper_of(FileRegistry(path, OUR_MARK), mark=OUR_MARK).acquire(CONFIG))
    assert list(subnets_in(path)) == [lease.entry.key] if marked else ["10.9.0.0-24", lease.entry.key]


async def test_twenty_hosts_that_start_together_get_twenty_subnets(path: Path) -> None:
    config = parse_config('{"Network": "10.1.0.0/16", "SubnetMax": "10.1.20.0"}').config
    keepers = [
        LeaseKeeper(
            FileRegistry(path), LeaseAttrs(IPv4Address(f"192.0.2.{n}")), MARGIN_S, forward_for_ever, delays=QUICK
        )
        for n in range(1, 21)
    ]
    leases = await soon(asyncio.gather(*(keeper.acquire(config) for keeper in keepers)))
    assert len({lease.subnet for lease in leases}) == 20


async def test_a_lost_race_means_another_subnet() -> None:
    registry = MemoryRegistry()

    def rival(call: str) -> None:
        if call == "create" and "10.1.5.0-24" not in registry.entries:
            registry.put("10.1.5.0-24", OTHER_VALUE)

    registry.before = rival
    keeper = keeper_of(registry, previous="10.1.5.0/24")
    assert str((await soon(keeper.acquire(NARROW))).subnet) == "10.1.6.0/24"
    assert registry.calls.count("create") == 2
    assert registry.ttls_s == {LEASE_TTL_S}


async def test_ten_lost_races_in_a_row_are_a_failure_that_is_said_and_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry = MemoryRegistry()
    lost = 0

    def rival(call: str) -> None:
        nonlocal lost
        if call == "create" and lost < RACES:
            # Somebody is faster wherever we look, and gone when we look again.
            lost += 1
            for n in range(1, 256):
                registry.put(f"10.1.{n}.0-24", OTHER_VALUE)
        elif call == "list":
            registry.entries.clear()

    registry.before = rival
    await soon(keeper_of(registry).acquire(CONFIG))
    assert registry.calls.count("create") == RACES + 1
    assert "acquiring a subnet failed: other hosts were faster 10 times in a row" in caplog.text


async def test_a_lease_of_ours_that_vanishes_while_it_is_reused_is_a_lost_race() -> None:
    registry = MemoryRegistry()
    registry.put("10.1.5.0-24", OUR_VALUE)

    def expire(call: str) -> None:
        if call == "take":
            registry.remove("10.1.5.0-24")

    registry.before = expire
    assert (await soon(keeper_of(registry).acquire(NARROW))).subnet is not None
    assert registry.calls.count("create") == 1


async def test_a_lost_answer_to_create_does_not_cost_a_second_subnet() -> None:
    registry = MemoryRegistry()

    def lose_answer(call: str) -> None:
        if call == "create" and not registry.entries:
            registry.put("10.1.200.0-24", OUR_VALUE)
            raise RegistryError("connection reset")

    registry.before = lose_answer
    assert (await soon(keeper_of(registry).acquire(CONFIG))).entry.key == "10.1.200.0-24"
    assert len(registry.entries) == 1


async def test_an_exhausted_range_is_retried_with_one_line_until_a_subnet_is_free(
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry = MemoryRegistry()
    for n in (5, 6):
        registry.put(f"10.1.{n}.0-24", OTHER_VALUE)
    acquiring = asyncio.create_task(keeper_of(registry).acquire(NARROW))
    await eventually(registry, "list", 4)
    registry.remove("10.1.6.0-24")
    assert (await soon(acquiring)).entry.key == "10.1.6.0-24"
    (line,) = [line for line in caplog.messages if "taken" in line]
    assert line == (
        "acquiring a subnet failed: all 2 subnets of length /24 from 10.1.5.0 to 10.1.6.0 are taken: "
        "delete stale leases or widen the network configuration (trying again every 0.01 to 0.02 s)"
    )


async def test_while_the_registry_is_away_the_reason_is_said_once_for_each_change_of_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    registry = MemoryRegistry()
    registry.failure = RegistryError("etcd does not answer")
    acquiring = asyncio.create_task(keeper_of(registry).acquire(CONFIG))
    await eventually(registry, "list", 4)
    registry.failure = RegistryDenied("wrong password")
    await eventually(registry, "list", 8)
    registry.failure = None
    await soon(acquiring)
    then = "(trying again every 0.01 to 0.02 s)"
    assert [(record.levelname, record.message) for record in caplog.records if "acquiring" in record.message] == [
        ("WARNING", f"acquiring a subnet failed: etcd does not answer {then}"),
        ("ERROR", f"acquiring a subnet failed: wrong password {then}"),
        ("INFO", "acquiring a subnet: works now"),
    ]


# --- Renew --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left_s", "margin_s", "delay_s"),
    [
        (86_400, 3600, 82_800),  # flannel's defaults
        (86_400, 1439 * 60, 60),  # the widest margin
        (86_400, 60, 86_400 - 2 * 96.4),  # the narrowest one: we would have stopped before it
        (300, 3600, 60),  # granted for less than the margin
        (3600.5, 3600, 60),  # hardly more than the margin
        (10, 3600, 5),
    ],
)
def test_the_renewal_is_due_at_the_margin_and_never_without_a_pause(
    left_s: float, margin_s: float, delay_s: float
) -> None:
    assert renew_delay_s(left_s, margin_s, 60, part=0) == delay_s


@pytest.mark.parametrize(
    ("left_s", "margin_s", "spread_s"),
    [
        (86_400, 3600, 900),  # flannel's defaults: a quarter of an hour
        (86_400, 300, 300 - 2 * 96.4),  # what a narrow margin leaves before we would have to stop
        (86_400, 60, 2 * 96.4 / 4),  # the narrowest one
        (86_400, 1439 * 60, 900),
        (300, 3600, 15),
    ],
)
def test_renewals_of_many_hosts_are_spread_and_keep_to_the_margin(
    left_s: float, margin_s: float, spread_s: float
) -> None:
    delays = [renew_delay_s(left_s, margin_s, 60, part / 1000) for part in range(1001)]
    assert max(delays) - min(delays) == pytest.approx(spread_s)
    latest_s = left_s - 2 * safety_s(left_s)
    assert all(delay_s <= latest_s for delay_s in delays)
    if 2 * safety_s(left_s) < margin_s < left_s:
        assert all(delay_s >= left_s - margin_s for delay_s in delays)  # no sooner than the margin says


def test_a_thousand_hosts_that_start_in_one_minute_renew_over_a_quarter_of_an_hour() -> None:
    rng = random.Random(1)
    due_s = sorted(rng.uniform(0, 60) + renew_delay_s(86_400, 3600, 60, rng.random()) for _ in range(1000))
    busiest = max(sum(begin_s <= at_s < begin_s + 10 for at_s in due_s) for begin_s in due_s)
    assert busiest < 40  # of the 167 that started within the busiest ten seconds


async def test_the_lease_is_renewed_when_the_margin_is_reached_and_peers_see_no_event() -> None:
    registry = MemoryRegistry()
    registry.granted_s = 60.0  # a busy machine renews before it ends
    keeper = keeper_of(registry, margin_s=59.9, rng=AtOnce())
    lease = await soon(keeper.acquire(CONFIG))
    revision = registry.revision
    async with kept(keeper) as task:
        await eventually(registry, "renew", 3)
        assert not task.done()
    assert (keeper.lease, registry.revision) == (lease, revision)


async def test_a_lease_far_from_its_margin_and_a_reservation_are_left_alone() -> None:
    for lease_id in (0, 7):
        registry = MemoryRegistry()
        registry.put("10.1.5.0-24", OUR_VALUE, lease_id)
        keeper = keeper_of(registry)
        await soon(keeper.acquire(CONFIG))
        async with kept(keeper):
            await asyncio.sleep(0.1)
        assert (registry.calls.count("take"), registry.calls.count("renew")) == (1, 0)


async def test_a_failed_renewal_is_tried_again_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    registry = MemoryRegistry()
    registry.granted_s = 20.0
    keeper = keeper_of(registry, margin_s=MARGIN_S)
    await soon(keeper.acquire(CONFIG))
    async with kept(keeper) as task:
        await eventually(registry, "renew", 2)
        registry.granted_s = 30.0
        await eventually(registry, "renew", 4)
        registry.failure = RegistryError("etcd does not answer")
        await eventually(registry, "renew", 6)
        registry.failure = None
        await eventually(registry, "renew", 8)
        assert not task.done()
    lines = [line for line in caplog.messages if "renewing" in line]
    assert lines == [
        "renewing the subnet failed: etcd does not answer (0 min of it are left; trying again every 0.03 s)",
        "renewing the subnet: works now",
    ]
    counts, tried = keeper.counts, registry.calls.count("renew")
    assert (counts.acquired, counts.lost) == (1, 0)
    assert counts.failures >= 2
    assert tried - 1 <= counts.failures + counts.renewals <= tried  # the last one may not have been answered
    assert counts.renewed_s is not None
    assert 0 <= time.time() - counts.renewed_s < PATIENCE_S


# --- Loss ---------------------------------------------------------------------------------------------------------


async def test_a_lease_that_cannot_be_renewed_is_given_up_before_it_ends() -> None:
    registry = MemoryRegistry()
    registry.granted_s = granted_s = 20.0  # a quarter of it is before the end, for a busy machine
    began_s = now_s()
    keeper = keeper_of(registry)
    lease = await soon(keeper.acquire(CONFIG))
    registry.failure = RegistryError("etcd does not answer")
    async with kept(keeper) as task:
        reason = await soon(task)
    assert reason == f"{lease.entry.key} could not be renewed in time: the registry may soon give it to another host"
    assert granted_s / 2 < now_s() - began_s < granted_s
    assert (keeper.lease, keeper.left_s) == (None, None)


async def test_a_renewal_that_hangs_does_not_put_off_the_end() -> None:
    registry = MemoryRegistry()
    registry.granted_s = 1.0
    keeper = keeper_of(registry)
    await soon(keeper.acquire(CONFIG))
    registry.hang = True
    async with kept(keeper) as task:
        assert "could not be renewed in time" in await soon(task)


async def test_a_lease_found_lost_at_its_renewal_ends_keep_and_the_rival_keeps_the_subnet() -> None:
    registry = MemoryRegistry()
    registry.granted_s = 60.0  # a busy machine renews before it ends
    keeper = keeper_of(registry, margin_s=59.9, rng=AtOnce())
    lease = await soon(keeper.acquire(CONFIG))
    rival = registry.put(lease.entry.key, OTHER_VALUE)
    async with kept(keeper) as task:
        assert await soon(task) == f"{lease.entry.key} was taken by 192.0.2.9"
    assert registry.entries == {lease.entry.key: rival}
    assert keeper.lease is None
    assert (keeper.counts.acquired, keeper.counts.lost, keeper.counts.failures) == (1, 1, 1)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "was deleted from the registry or expired"),
        (OTHER_VALUE, "was taken by 192.0.2.9"),
        (b"?", "was overwritten: lease value is not JSON: Expecting value: line 1 column 1 (char 0)"),
    ],
)
async def test_a_loss_that_the_watch_shows_ends_keep_long_before_the_renewal(value: bytes | None, reason: str) -> None:
    registry = MemoryRegistry()
    keeper = keeper_of(registry)
    key = (await soon(keeper.acquire(CONFIG))).entry.key
    async with kept(keeper) as task:
        if value is None:
            registry.remove(key)
        else:
            registry.put(key, value)
        keeper.observe(registry.entries.get(key))
        assert await soon(task) == f"{key} {reason}"


async def test_what_the_watch_shows_late_costs_nothing_but_a_renewal() -> None:
    registry = MemoryRegistry()
    keeper = keeper_of(registry)
    lease = await soon(keeper.acquire(CONFIG))
    async with kept(keeper) as task:
        keeper.observe(None)  # a listing from before we created the key
        await eventually(registry, "renew", 1)
        keeper.observe(lease.entry)
        await asyncio.sleep(0.05)
        assert not task.done()
    assert registry.calls.count("renew") == 1
    assert keeper.lease == lease


async def test_a_doubt_that_comes_up_during_a_renewal_is_checked_after_it() -> None:
    registry = MemoryRegistry()
    keeper = keeper_of(registry)
    await soon(keeper.acquire(CONFIG))

    def doubt(call: str) -> None:
        if call == "time_left_s" and registry.calls.count("renew") == 1:
            keeper.observe(None)

    registry.before = doubt
    keeper.observe(None)
    async with kept(keeper):
        await eventually(registry, "renew", 2)


async def test_a_doubted_lease_is_checked_again_within_seconds_until_the_registry_answers() -> None:
    registry = MemoryRegistry()
    delays = Delays(first_retry_s=0.01, last_retry_s=0.02, renew_retry_s=60)
    keeper = LeaseKeeper(registry, LeaseAttrs(IPv4Address(OUR_IP)), MARGIN_S, forward_for_ever, delays=delays)
    key = (await soon(keeper.acquire(CONFIG))).entry.key
    registry.failure = RegistryError("etcd does not answer")
    async with kept(keeper) as task:
        registry.remove(key)
        keeper.observe(None)
        await eventually(registry, "renew", 4)
        assert not task.done()
        registry.failure = None
        assert "was deleted" in await soon(task)


async def test_a_lease_that_a_person_turns_into_a_reservation_is_kept_without_a_break() -> None:
    registry = MemoryRegistry()
    keeper = keeper_of(registry)
    key = (await soon(keeper.acquire(CONFIG))).entry.key
    async with kept(keeper) as task:
        keeper.observe(registry.put(key, b'{"PublicIP": "192.0.2.1"}', lease_id=0))
        await eventually(registry, "time_left_s", 2)
        await asyncio.sleep(0)
        assert not task.done()
        assert keeper.lease is not None
        assert keeper.lease.entry == registry.entries[key]
        assert (registry.entries[key].value, keeper.lease.entry.reserved, keeper.left_s) == (OUR_VALUE, True, None)


async def test_after_a_loss_the_same_subnet_is_taken_again_if_it_is_free() -> None:
    registry = MemoryRegistry()
    keeper = keeper_of(registry)
    lease = await soon(keeper.acquire(CONFIG))
    async with kept(keeper) as task:
        registry.remove(lease.entry.key)
        keeper.observe(None)
        await soon(task)
    keeper.observe(None)  # nothing is held now: nothing to doubt
    assert (await soon(keeper.acquire(CONFIG))).subnet == lease.subnet


async def test_keep_without_a_lease_is_a_programming_error() -> None:
    with pytest.raises(RuntimeError):
        await keeper_of(MemoryRegistry()).keep()


# --- Release ------------------------------------------------------------------------------------------------------


async def test_release_deletes_the_lease(path: Path) -> None:
    keeper = keeper_of(FileRegistry(path))
    await soon(keeper.acquire(CONFIG))
    await soon(keeper.release())
    await soon(keeper.release())
    assert (subnets_in(path), keeper.lease) == ({}, None)


async def test_release_leaves_a_reservation(path: Path) -> None:
    path.write_text('{"subnets": {"10.1.33.0-24": {"PublicIP": "192.0.2.1"}}}')
    keeper = keeper_of(FileRegistry(path))
    await soon(keeper.acquire(CONFIG))
    await soon(keeper.release())
    assert list(subnets_in(path)) == ["10.1.33.0-24"]


async def test_release_never_deletes_what_another_host_took() -> None:
    registry = MemoryRegistry()
    keeper = keeper_of(registry)
    key = (await soon(keeper.acquire(CONFIG))).entry.key
    rival = registry.put(key, OTHER_VALUE)
    await soon(keeper.release())
    assert registry.entries == {key: rival}
