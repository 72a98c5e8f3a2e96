"""What stops some of the traffic though the agent is ready: collected from whoever finds it, said once."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace

from flannel_udp.model import Degradation

logger = logging.getLogger(__name__)


class Conditions:
    """What every source found wrong when it last looked."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, int], tuple[Degradation, ...]] = {}

    @property
    def degradations(self) -> tuple[Degradation, ...]:
        """All that is wrong now, in the order in which the sources first spoke."""
        return tuple(item for found in self._found.values() for item in found)

    def note(self, source: str, found: Iterable[Degradation], *, said: bool = False, version: int = 0) -> None:
        """Note all that `source` finds wrong now, which replaces what it found before; nothing means: all is well.

        There is one of those that look at one family only for each, by IP `version`.

        What comes is logged, and what goes, unless the source has `said` so itself. A source with much to say, 10,000
        peers, say, sums up by itself.
        """
        if version:
            found = (replace(item, version=version) for item in found)
        former, now = self._found.get((source, version), ()), tuple(dict.fromkeys(found))
        self._found[source, version] = now
        if said:
            return
        for item in now:
            if item not in former:
                logger.warning("degraded: %s", item.text)
        for item in former:
            if item not in now:
                logger.info("no longer degraded: %s", item.text)
