"""Whether a lab's agents fit into the memory of this machine."""

from __future__ import annotations

import re
from pathlib import Path

from flannel_udp.errors import FlannelError

AGENT_MB = 45
"""What one agent needs of its own: measured in a lab of 40."""
_MEMINFO = Path("/proc/meminfo")


def require_memory(agents: int) -> None:
    """Raise `FlannelError` with how many hosts fit, where so many agents more do not."""
    free = free_mb(_MEMINFO.read_text())
    if agents * AGENT_MB > free:
        needs = f"{agents} agents need {agents * AGENT_MB} MB of memory and {free} are free"
        raise FlannelError(f"{needs}: enough for {free // AGENT_MB} hosts")


def free_mb(meminfo: str) -> int:
    """Return what may be had without swapping, by the text of /proc/meminfo (proc(5)), in MB."""
    found = re.search(r"(?m)^MemAvailable:\s+(\d+) kB$", meminfo)
    assert found is not None  # noqa: S101 - every Linux since 3.14 says it
    return int(found[1]) // 1000
