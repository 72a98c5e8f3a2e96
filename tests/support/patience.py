"""How long tests wait, on a machine that may be busy with other things."""

from __future__ import annotations

import os
from pathlib import Path

PATIENCE_S = 90.0
"""For what should take a fraction of a second, and must come."""
_STALL_S = 10.0
"""How long whoever is waited for may not run at all where others want the processors."""


def promised(seconds: float) -> float:
    """Return how long what we promise within `seconds` may take now.

    The promise is made for a machine with processors to spare. Elsewhere all who want to run take turns: as many as the
    load average of the last minute says, or those of this moment if they are more. One of them may wait much longer.
    """
    running = Path("/proc/loadavg").read_text().split()[3].partition("/")[0]
    load = max(os.getloadavg()[0], int(running))
    processors = len(os.sched_getaffinity(0))
    return seconds * (1 + load / processors) + (_STALL_S if load > processors else 0.0)
