"""The last error of each part of the agent, for `status`: also when it is over, and the log may be far away."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from flannel_udp.admin.shapes import LastErrorRow


@dataclass(frozen=True, slots=True)
class _LastError:
    text: str
    time_s: float
    """Monotonic, when it was met last."""
    over: bool = False


class LastErrors:
    """`note` what goes wrong in a part: "interface", "configuration", "lease", "watch", "firewall", "backend"."""

    def __init__(self) -> None:
        self._met: dict[str, _LastError] = {}

    def note(self, part: str, text: str | None) -> None:
        """Note what has just gone wrong there; ``None``: it works."""
        if text is not None:
            self._met[part] = _LastError(text, time.monotonic())
        elif part in self._met:
            self._met[part] = replace(self._met[part], over=True)

    def noter(self, part: str) -> Callable[[str | None], None]:
        """Return `note` for one part."""
        return partial(self.note, part)

    def rows(self) -> dict[str, LastErrorRow]:
        """Return what `status` says of them, by part."""
        now_s = time.monotonic()
        return {
            part: LastErrorRow(text=met.text, ago_s=round(now_s - met.time_s, 3), over=met.over)
            for part, met in self._met.items()
        }
