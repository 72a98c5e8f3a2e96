"""Waiting for the network configuration: missing, broken, registry away; said once, never an exit."""

from __future__ import annotations

import asyncio
import logging
import time
from itertools import pairwise
from pathlib import Path

import pytest

from flannel_udp.control.retry import Delays, retry, wait_for_config
from flannel_udp.errors import RegistryError
from flannel_udp.registry.file.registry import FileRegistry
from tests.support.backends import parse_config
from tests.support.memory_registry import MemoryRegistry
from tests.support.patience import PATIENCE_S

QUICK = Delays(first_retry_s=0.01, last_retry_s=0.02)
THEN = "(trying again every 0.01 to 0.02 s)"


async def said(caplog: pytest.LogCaptureFixture, what: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while what not in caplog.text:
            await asyncio.sleep(0.01)


async def test_a_missing_then_broken_configuration_is_waited_for_until_it_is_right(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "flannel_udp.control")
    registry = FileRegistry(tmp_path / "registry.json")
    waiting = asyncio.create_task(wait_for_config(registry, parse_config, delays=QUICK))
    await said(caplog, "holds no network configuration")
    await registry.write_config(b'{"SubnetLen": 99, "Backend": 3}')
    await said(caplog, "Network is missing")
    await asyncio.sleep(0.1)  # several more tries, which say nothing
    await registry.write_config(b'{"Network": "10.1.0.0/16", "Colour": "red"}')
    parsed = await asyncio.wait_for(waiting, PATIENCE_S)
    assert parsed.config.v4 is not None
    what = "reading the network configuration"
    missing, *rest = caplog.messages
    file = tmp_path / "registry.json"
    assert missing == (
        f"{what} failed: registry file {file} does not exist and so holds no network configuration: copy the one of "
        f"the other hosts there, or write one with `flannel-udp config put FILE --registry=file:{file}` {THEN}"
    )
    assert rest == [
        f"{what} failed: SubnetLen is 99: expected at most 30 {THEN}",
        f"{what} failed: Backend is 3: expected an object {THEN}",
        f'{what} failed: Network is missing: expected a network such as "10.1.0.0/16" {THEN}',
        f"{what}: works now",
        'network configuration: unknown key "Colour" is ignored',
    ]


async def test_a_registry_that_is_away_is_waited_for() -> None:
    registry = MemoryRegistry()
    registry.config = b'{"Network": "10.1.0.0/16"}'
    registry.failure = RegistryError("etcd does not answer")
    waiting = asyncio.create_task(wait_for_config(registry, parse_config, delays=QUICK))
    async with asyncio.timeout(PATIENCE_S):
        while len(registry.calls) < 3:
            await asyncio.sleep(0.01)
    assert not waiting.done()
    registry.failure = None
    assert (await asyncio.wait_for(waiting, PATIENCE_S)).warnings == ()


async def test_the_delay_grows_to_its_bound() -> None:
    moments: list[float] = []

    async def call() -> None:
        moments.append(time.monotonic())
        if len(moments) < 6:
            raise RegistryError("not yet")

    await asyncio.wait_for(retry("trying", call, Delays(first_retry_s=0.02, last_retry_s=0.1)), PATIENCE_S)
    pauses = [later - earlier for earlier, later in pairwise(moments)]
    for pause, least in zip(pauses, [0.02, 0.04, 0.08, 0.1, 0.1], strict=True):
        assert pause >= least * 0.95  # how much more it is depends on the machine


def test_the_defaults_are_one_second_growing_to_five_and_a_minute_for_renewals() -> None:
    delays = Delays()
    assert (delays.first_retry_s, delays.last_retry_s, delays.renew_retry_s) == (1, 5, 60)
    assert [delays.after(1), delays.after(2), delays.after(4), delays.after(5)] == [2, 4, 5, 5]


async def test_a_programming_error_is_not_retried() -> None:
    async def call() -> None:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        await retry("trying", call, QUICK)
