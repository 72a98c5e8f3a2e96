"""Asking the registry again until it works: never an exit, never a line of log a second."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from flannel_udp.backoff.delay import Backoff, doubled
from flannel_udp.backoff.said_once import SaidOnce
from flannel_udp.errors import Claimed, ConfigError, FlannelError, RegistryDenied, UnusableFile, UsageError
from flannel_udp.netconf.config import NetworkConfig, ParsedConfig
from flannel_udp.registry import Registry

logger = logging.getLogger(__name__)

T = TypeVar("T")
Parse = Callable[[bytes], ParsedConfig]
"""Reads a network configuration with the backends that there are; raises `ConfigError`."""

TellError = Callable[[str | None], object]
"""Told what has just gone wrong; ``None``: it works."""


def ignore(_error: str | None) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True, slots=True)
class Delays:
    """How long the room waits before it tries again, in seconds."""

    first_retry_s: float = 1.0
    last_retry_s: float = 5.0
    renew_retry_s: float = 60.0

    def after(self, delay_s: float) -> float:
        """Return the delay that follows `delay_s`: doubled, up to the last one."""
        return doubled(delay_s, self.last_retry_s)

    def backoff(self) -> Backoff:
        """Return the delays of a loop that tries until it works."""
        return Backoff(self.first_retry_s, self.last_retry_s, random.Random())  # noqa: S311 - no secret


DEFAULT_DELAYS = Delays()


class Complaints:
    """Logs why something fails when the reason changes, and once when it works again; `tell` hears of all of it."""

    def __init__(self, what: str, tell: TellError = ignore) -> None:
        self._what = what
        self._tell = tell
        self._said = SaidOnce()

    def failed(self, error: FlannelError, then: str) -> None:
        """Note a failure; `then` says what happens next."""
        reason = error.faults if isinstance(error, ConfigError) else [str(error)]
        self._tell(str(error))
        if not self._said.failed(reason):
            return
        # What only a person can put right is more than a warning.
        level = logging.ERROR if isinstance(error, RegistryDenied | ConfigError) else logging.WARNING
        for line in reason:
            logger.log(level, "%s failed: %s (%s)", self._what, line, then)

    def worked(self) -> None:
        """Note a success."""
        self._tell(None)
        if self._said.worked():
            logger.info("%s: works now", self._what)


async def retry(
    what: str, call: Callable[[], Awaitable[T]], delays: Delays = DEFAULT_DELAYS, tell: TellError = ignore
) -> T:
    """Return what `call` returns, as soon as it no longer raises a `FlannelError`; `what` opens the log lines.

    `tell` hears of each failure. A `UsageError` is raised on, unless it is about a file, and so is `Claimed`.
    """
    complaints, backoff = Complaints(what, tell), delays.backoff()
    while True:
        try:
            result = await call()
        except FlannelError as error:
            if isinstance(error, Claimed) or (isinstance(error, UsageError) and not isinstance(error, UnusableFile)):
                raise  # the command line stays what it is, and another agent what it has
            complaints.failed(error, f"trying again every {delays.first_retry_s:g} to {delays.last_retry_s:g} s")
        else:
            complaints.worked()
            return result
        await asyncio.sleep(backoff.next_s())


async def wait_for_config(
    registry: Registry,
    parse: Parse,
    check: Callable[[NetworkConfig], Awaitable[None]] | None = None,
    delays: Delays = DEFAULT_DELAYS,
    tell: TellError = ignore,
) -> ParsedConfig:
    """Read the network configuration, for as long as it takes until there is a valid one; log its warnings.

    `check` raises `FlannelError` for one that is valid and not for this host; `tell` hears of each failure.
    """

    async def read() -> ParsedConfig:
        parsed = parse(await registry.read_config())
        if check is not None:
            await check(parsed.config)
        return parsed

    parsed = await retry("reading the network configuration", read, delays, tell)
    for warning in parsed.warnings:
        logger.warning("network configuration: %s", warning)
    return parsed
