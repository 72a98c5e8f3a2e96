"""Leases in a file end by the clock: clocks that jump, and hosts whose clocks disagree."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flannel_udp.errors import LeaseLost, RegistryError
from flannel_udp.model import LEASE_TTL_S
from flannel_udp.registry.file.clock import Clock, describe_span, folder_ahead_s
from flannel_udp.registry.file.registry import FileRegistry
from tests.registry.support import said, watching

KEY, OTHER_KEY = "10.1.15.0-24", "10.1.16.0-24"
VALUE = b'{"PublicIP":"192.0.2.1","PublicIPv6":null}'
OTHER_VALUE = b'{"PublicIP":"192.0.2.2","PublicIPv6":null}'
MARK, OTHER_MARK = 0x1234, 0x5678
DAY_S = 86_400.0


class Wall:
    """The wall clock, which a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.jump_s = 0.0
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + self.jump_s)


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Wall:
    return Wall(monkeypatch)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "registry.json"


def expires_in(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def lease(public_ip: str, seconds: float, owner: str = "00005678-00000001") -> dict[str, str]:
    return {"PublicIP": public_ip, "Expires": expires_in(seconds), "Owner": owner}


def subnets_in(path: Path) -> dict[str, object]:
    subnets: dict[str, object] = json.loads(path.read_text())["subnets"]
    return subnets


# A host whose clock is wrong from the start


def test_config_put_by_a_host_two_days_ahead_deletes_nobodys_lease(path: Path, tmp_path: Path) -> None:
    leases = {KEY: lease("192.0.2.1", DAY_S), OTHER_KEY: lease("192.0.2.2", DAY_S)}
    path.write_text(json.dumps({"config": {"Network": "10.1.0.0/16"}, "subnets": leases}))
    (tmp_path / "sitecustomize.py").write_text(
        "import time\nreal = time.time\ntime.time = lambda: real() + 2 * 86400\n"
    )
    (tmp_path / "new.json").write_text('{"Network": "10.1.0.0/16", "SubnetLen": 25}')
    argv = [sys.executable, "-m", "flannel_udp", "config", "put", "--registry", f"file:{path}", "new.json"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    subprocess.run(argv, cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=60)
    assert json.loads(path.read_text())["config"]["SubnetLen"] == 25
    assert subnets_in(path) == leases


@pytest.mark.parametrize("days", [2, -2])
async def test_a_host_whose_clock_is_off_that_of_the_folder_takes_no_lease(path: Path, wall: Wall, days: int) -> None:
    path.write_text(json.dumps({"subnets": {OTHER_KEY: lease("192.0.2.2", DAY_S)}}))
    before = path.read_text()
    wall.jump_s = days * DAY_S
    registry = FileRegistry(path, MARK)
    with pytest.raises(RegistryError) as caught:
        await registry.create(KEY, VALUE, LEASE_TTL_S)
    assert str(caught.value) == (
        f"registry file {path}: the clock of this host is {days:+.1f} days from that of its folder, and leases end by "
        "the clock: set it right (timedatectl)"
    )
    assert path.read_text() == before


async def test_another_host_whose_clock_is_ahead_by_more_than_a_leases_life_is_named_and_nothing_taken(
    path: Path,
) -> None:
    path.write_text(json.dumps({"subnets": {OTHER_KEY: lease("192.0.2.2", 4 * DAY_S), KEY: lease("192.0.2.1", 60)}}))
    before = path.read_text()
    registry = FileRegistry(path, MARK)
    found = (await registry.list()).entries[KEY]
    for use in (registry.create("10.1.17.0-24", VALUE, LEASE_TTL_S), registry.take(found, VALUE, LEASE_TTL_S)):
        with pytest.raises(RegistryError) as caught:
            await use
        assert str(caught.value) == (
            f"registry file {path}: the clock of 192.0.2.2 ({OTHER_KEY}) is +3.0 days from ours, and leases end by the "
            "clock: set both right (timedatectl), or remove that entry if its host is gone"
        )
    assert path.read_text() == before


async def test_a_lease_that_is_held_goes_on_beside_such_a_host_which_is_named_once(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry = FileRegistry(path, MARK)
    ours = await registry.create(KEY, VALUE, LEASE_TTL_S)
    document = json.loads(path.read_text())
    document["subnets"][OTHER_KEY] = lease("192.0.2.2", 4 * DAY_S)
    path.write_text(json.dumps(document))
    async with watching(registry) as seen:
        assert (await seen.snapshot()).entries.keys() == {KEY, OTHER_KEY}
        assert await registry.renew(ours, VALUE, LEASE_TTL_S) == ours
        document["note"] = "something else"
        path.write_text(json.dumps(document))
        await registry.list()
    assert caplog.text.count("the clock of 192.0.2.2 (10.1.16.0-24) is +3.0 days from ours") == 1


async def test_an_end_far_away_that_a_person_wrote_is_no_clock(path: Path) -> None:
    by_hand = {"PublicIP": "192.0.2.2", "Expires": "2999-01-01T00:00:00Z"}
    path.write_text(json.dumps({"subnets": {OTHER_KEY: by_hand}}))
    await FileRegistry(path, MARK).create(KEY, VALUE, LEASE_TTL_S)
    assert subnets_in(path)[OTHER_KEY] == by_hand


# Our own clock jumps


@pytest.mark.parametrize("days", [2, -2])
async def test_a_jump_of_our_clock_that_makes_no_sense_of_the_leases_costs_nobody_anything(
    path: Path, wall: Wall, days: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    registry = FileRegistry(path, MARK)
    ours = await registry.create(KEY, VALUE, LEASE_TTL_S)
    await FileRegistry(path, OTHER_MARK).create(OTHER_KEY, OTHER_VALUE, LEASE_TTL_S)
    async with watching(registry) as seen:
        await seen.snapshot()
        wall.jump_s = days * DAY_S
        assert await registry.renew(ours, VALUE, LEASE_TTL_S) == ours
        assert (await registry.list()).entries.keys() == {KEY, OTHER_KEY}
        left_s = await registry.time_left_s(ours)
        assert left_s == pytest.approx(LEASE_TTL_S, abs=60)
        await said(caplog, f"the clock of this host jumped by {days:+.1f} days, and by it the leases")
        assert await seen.is_quiet(0.5)
        wall.jump_s = 0.0
        await registry.list()
        await said(caplog, "the clock of this host is right again")
    assert sum("the clock of this host" in line for line in caplog.messages) == 2


async def test_a_jump_that_puts_the_clock_right_is_followed(path: Path, wall: Wall) -> None:
    path.write_text(
        json.dumps({"subnets": {OTHER_KEY: lease("192.0.2.2", 60), "10.1.17.0-24": lease("192.0.2.3", 60)}})
    )
    wall.jump_s = 3 * DAY_S  # no battery: it starts with some time or other
    registry = FileRegistry(path, MARK)
    assert (await registry.list()).entries == {}
    wall.jump_s = 0.0
    assert (await registry.list()).entries.keys() == {OTHER_KEY, "10.1.17.0-24"}


async def test_a_machine_that_stood_still_for_two_days_believes_its_clock_and_its_lease_is_over(
    path: Path, wall: Wall, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A hypervisor that pauses a machine stops CLOCK_BOOTTIME, too; the others have renewed theirs meanwhile.
    wall.jump_s = -2 * DAY_S
    registry = FileRegistry(path, MARK)
    monkeypatch.setattr(registry, "_refuse_folders_clock", lambda: None)  # its folder's clock stood still, too
    ours = await registry.create(KEY, VALUE, LEASE_TTL_S)
    document = json.loads(path.read_text())
    document["subnets"][OTHER_KEY] = lease("192.0.2.2", DAY_S)
    path.write_text(json.dumps(document))
    wall.jump_s = 0.0
    with pytest.raises(LeaseLost):
        await registry.time_left_s(ours)


async def test_no_lease_lives_longer_than_it_was_granted_for(path: Path) -> None:
    registry = FileRegistry(path, MARK)
    ours = await registry.create(KEY, VALUE, LEASE_TTL_S)
    document = json.loads(path.read_text())
    document["subnets"][KEY]["Expires"] = expires_in(1.5 * DAY_S)
    path.write_text(json.dumps(document))
    assert await registry.time_left_s(ours) == LEASE_TTL_S


def test_small_steps_are_followed_without_a_word(wall: Wall, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock()
    wall.jump_s = 30.0
    clock.look([])
    assert clock.now_s() == pytest.approx(time.time(), abs=10)
    assert caplog.messages == []


# Small parts


def test_a_folders_clock_is_asked_for_where_something_can_be_written(tmp_path: Path) -> None:
    assert folder_ahead_s(tmp_path) == pytest.approx(0, abs=10)
    assert list(tmp_path.iterdir()) == []
    assert folder_ahead_s(tmp_path / "missing") is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(172_800, "+2.0 days"), (-7_200, "-2.0 h"), (180, "+3.0 min"), (-5, "-5 s")]
)
def test_spans_are_told_in_peoples_units(seconds: float, text: str) -> None:
    assert describe_span(seconds) == text
