"""A lease keeper with short delays, and how a test waits for what it does."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv4Network
from typing import TypeVar

from flannel_udp.control.lease import LeaseKeeper
from flannel_udp.control.retry import Delays
from flannel_udp.model import LeaseAttrs, Subnet
from flannel_udp.registry import Registry
from tests.support.backends import parse_config
from tests.support.memory_registry import MemoryRegistry
from tests.support.patience import PATIENCE_S

T = TypeVar("T")

OUR_IP = "192.0.2.1"
OUR_MARK, OTHER_MARK = 0x1234, 0x5678
OUR_VALUE = b'{"PublicIP":"192.0.2.1","PublicIPv6":null}'
OTHER_VALUE = b'{"PublicIP":"192.0.2.9","PublicIPv6":null}'
CONFIG = parse_config('{"Network": "10.1.0.0/16"}').config
MARGIN_S = 3600.0
QUICK = Delays(first_retry_s=0.01, last_retry_s=0.02, renew_retry_s=0.03)


class AtOnce(random.Random):
    """Of a time that is drawn by lot, the first moment: a renewal is due when its margin is reached."""

    def random(self) -> float:
        return 0.0


def forward_for_ever(_until_s: float | None) -> None:
    """Be a dataplane that the test does not look at."""


def keeper_of(
    registry: Registry,
    public_ip: str = OUR_IP,
    previous: str | None = None,
    margin_s: float = MARGIN_S,
    forward_until: Callable[[float | None], None] = forward_for_ever,
    *,
    backend_type: str = "",
    mark: int = 0,
    rng: random.Random | None = None,
) -> LeaseKeeper:
    wanted = None if previous is None else Subnet(IPv4Network(previous))
    attrs = LeaseAttrs(IPv4Address(public_ip), backend_type=backend_type)
    rng = rng or random.Random(1)
    return LeaseKeeper(registry, attrs, margin_s, forward_until, mark=mark, previous=wanted, delays=QUICK, rng=rng)


async def soon(promise: Awaitable[T]) -> T:
    """Await something that has to come true; a test that hangs instead fails."""
    return await asyncio.wait_for(promise, PATIENCE_S)


async def eventually(registry: MemoryRegistry, call: str, times: int) -> None:
    """Wait until `call` was made `times` times."""
    async with asyncio.timeout(PATIENCE_S):
        while registry.calls.count(call) < times:
            await asyncio.sleep(0.001)


@asynccontextmanager
async def kept(keeper: LeaseKeeper) -> AsyncIterator[asyncio.Task[str]]:
    task = asyncio.create_task(keeper.keep())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})
