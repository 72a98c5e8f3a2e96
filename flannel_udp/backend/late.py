"""What there is for one IP version, opened as soon as that can be: its address came late, or something is in the way.

What fails is tried again, at growing pauses: another program may have the port, IPv6 may be switched off for now.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterable

from flannel_udp.backoff.delay import Backoff
from flannel_udp.errors import Claimed, ConfigError, FlannelError, UsageError
from flannel_udp.host.repair import Standing

logger = logging.getLogger(__name__)

FIRST_RETRY_S, LAST_RETRY_S = 1.0, 30.0
FATAL = (Claimed, ConfigError, UsageError)
"""What no family can go on without: another agent has it, or a person has to change what was asked for."""
REPAIR = "family"
"""What such an opening is counted as."""


class _Trial:
    """Of one IP version: when it is tried next, and what it failed with last."""

    def __init__(self) -> None:
        self.due_s = 0.0
        self.fault: str | None = None
        self.backoff = Backoff(FIRST_RETRY_S, LAST_RETRY_S)


class LateOpening:
    """`open_one` opens what there is for an IP version. Raises `FlannelError`; nothing of it stays open then."""

    def __init__(self, open_one: Callable[[int], Awaitable[None]]) -> None:
        self._open_one = open_one
        self._trials: dict[int, _Trial] = {}

    def try_at_once(self) -> None:
        """Something has changed: what failed may work now."""
        self._trials.clear()

    async def look(self, missing: Iterable[int]) -> Standing:
        """Open what is missing of these IP versions, as far as a try is due, and say what still is."""
        trials = {version: self._trials.get(version) or _Trial() for version in missing}
        self._trials = trials
        for version, trial in list(trials.items()):
            if time.monotonic() < trial.due_s:
                continue
            try:
                await self._open_one(version)
            except FlannelError as failed:
                trial.fault = str(failed)
                trial.due_s = time.monotonic() + trial.backoff.next_s()
            else:
                del trials[version]
                logger.info("IPv%d packets are carried as well from now on", version)
        problems = (f"no IPv{version} traffic (trying again): {trial.fault}" for version, trial in trials.items())
        due_s = min((trial.due_s for trial in trials.values()), default=None)
        again_s = None if due_s is None else max(due_s - time.monotonic(), 0.0)
        return Standing(problems=tuple(problems), again_s=again_s)
