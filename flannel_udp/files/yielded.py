"""Until when a host leaves its subnet to another one with its address, remembered over restarts.

Without that, two agents that exit when they lose their lease, and are started again, would take it from each other
every few seconds. Agents that share a folder, of two overlays or two network namespaces, remember it each for itself.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from flannel_udp.files.atomic import replace_file
from flannel_udp.model import Address, Prefix


def yielded_file(folder: Path, overlay: Prefix, address: Address | None) -> Path:
    """Return where it is remembered for one overlay and address: seconds since 1970, as they outlive a reboot."""
    return folder / f"yielded-until.{str(overlay).replace('/', '-')}.{address}"


def yielded_for_s(file: Path, longest_s: float) -> float:
    """Return how long the subnet is still left to the other host, 0 for no longer; `longest_s` bounds what is read."""
    try:
        left_s = float(file.read_text(encoding="ascii")) - time.time()
    except (OSError, ValueError):
        return 0.0
    return left_s if 0 < left_s <= longest_s else 0.0  # neither is what a clock that was put back makes of it


def note_yielded(file: Path, seconds: float) -> None:
    """Remember that it is left to the other for so long, as far as there is a place for it."""
    with suppress(OSError):
        # Rounded down: who reads it at once would find it later than can be, and believe nothing of it.
        replace_file(file, f"{int(time.time() + seconds)}\n".encode(), 0o600)


def forget_yielded(file: Path) -> None:
    """Remember nothing any more."""
    with suppress(OSError):
        file.unlink(missing_ok=True)
