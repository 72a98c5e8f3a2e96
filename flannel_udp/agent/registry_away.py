"""What it means for this host that the registry cannot be followed."""

from __future__ import annotations

import time
from collections.abc import Iterator

from flannel_udp.errors import RegistryError
from flannel_udp.model import Degradation


class RegistryAway:
    """Since when that is so, whatever reasons it has had meanwhile."""

    def __init__(self) -> None:
        self._since_s: float | None = None

    def degradations(self, trouble: RegistryError | None, lease_left_s: float | None) -> Iterator[Degradation]:
        """Yield what is wrong, for as long as it lasts; `lease_left_s`: ``None`` without a lease or an end of it."""
        if trouble is None:
            self._since_s = None
            return
        now_s = time.time()
        if self._since_s is None:
            self._since_s = now_s
        text = f"the registry is away since {_moment(self._since_s)}: {trouble}: the peers stay as they were"
        if lease_left_s is not None:
            text += f", our lease ends at {_moment(now_s + lease_left_s)} unless it can be renewed"
        yield Degradation("registry", text)


def _moment(unix_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_s))
