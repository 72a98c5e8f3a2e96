"""What the registry tests share: looking at a watch step by step, and the store through other eyes than ours."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import pytest

from flannel_udp.errors import RegistryError, SubnetTaken
from flannel_udp.lab.etcd_server import EtcdServer
from flannel_udp.model import LEASE_TTL_S, Change, Entry, Snapshot
from flannel_udp.registry import Registry
from tests.support.patience import PATIENCE_S

T = TypeVar("T")
PASSWORD = "geheim"  # noqa: S105 - of an etcd that lives for one test


class FirstStays(random.Random):
    """The first endpoint that answers is used."""

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:  # noqa: ARG002 - random's
        return 0


class Watching:
    """What one watch has yielded so far, in order."""

    def __init__(self) -> None:
        self._seen: asyncio.Queue[Snapshot | Change] = asyncio.Queue()

    async def follow(self, registry: Registry) -> None:
        async for item in registry.watch():
            self._seen.put_nowait(item)

    async def snapshot(self) -> Snapshot:
        item = await asyncio.wait_for(self._seen.get(), PATIENCE_S)
        assert isinstance(item, Snapshot), item
        return item

    async def change(self) -> Change:
        item = await asyncio.wait_for(self._seen.get(), PATIENCE_S)
        assert isinstance(item, Change), item
        return item

    async def is_quiet(self, seconds: float) -> bool:
        await asyncio.sleep(seconds)
        return self._seen.empty()

    async def entry(self, key: str, value: bytes) -> Snapshot | Change:
        """Skip what comes before the first snapshot or change that shows `key` with `value`."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                item = await self._seen.get()
                entry = item.entries.get(key)
                if entry is not None and entry.value == value:
                    return item


@asynccontextmanager
async def watching(registry: Registry) -> AsyncIterator[Watching]:
    """Follow a watch in a task; an exception of the watch is raised at the end."""
    seen = Watching()
    task = asyncio.create_task(seen.follow(registry))
    try:
        yield seen
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def said(caplog: pytest.LogCaptureFixture, text: str) -> None:
    """Wait for a log message with this text."""
    async with asyncio.timeout(PATIENCE_S):
        while text not in caplog.text:
            await asyncio.sleep(0.01)


async def once_connected(ask: Callable[[], Awaitable[T]]) -> T:
    """Return the first answer of an etcd that is back: a channel that was refused waits before it connects again."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with suppress(RegistryError):
                return await ask()
            await asyncio.sleep(0.01)


async def created(registry: Registry, key: str, value: bytes) -> Entry:
    """Create a key; while the members elect a leader, as starved ones do at any time, that may take some tries."""

    async def create() -> Entry:
        try:
            return await registry.create(key, value, LEASE_TTL_S)
        except SubnetTaken:  # by us: the answer was lost
            return (await registry.list()).entries[key]

    return await once_connected(create)


def etcdctl(endpoint: str, *arguments: str) -> str:
    """Run etcd's own client and return what it prints. By itself it waits 2 and 5 s only."""
    done = subprocess.run(
        ["etcdctl", f"--endpoints={endpoint}", "--dial-timeout=60s", "--command-timeout=60s", *arguments],
        env=os.environ | {"ETCDCTL_API": "3"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def guarded(directory: Path, tokens: str) -> Iterator[EtcdServer]:
    """Run an etcd that asks for passwords, and gives such `tokens`. User flannel may use flannel's prefix only."""
    server = EtcdServer(directory, arguments=(tokens, "--bcrypt-cost=4"))
    server.start()
    try:
        _guard(server.endpoint)
        yield server
    finally:
        server.stop()


def _guard(endpoint: str) -> None:
    for command in (
        ("user", "add", f"root:{PASSWORD}"),
        ("user", "grant-role", "root", "root"),
        ("role", "add", "flannel"),
        ("role", "grant-permission", "--prefix=true", "flannel", "readwrite", "/coreos.com/network/"),
        ("user", "add", f"flannel:{PASSWORD}"),
        ("user", "grant-role", "flannel", "flannel"),
        ("auth", "enable"),
    ):
        etcdctl(endpoint, *command)
