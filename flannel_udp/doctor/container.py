"""Whether this process sees the host's programs and files, or a container's own in their place."""

from __future__ import annotations

from pathlib import Path

_FIRST = "pid:[4026531836]"
"""The kernel's first PID namespace: PROC_PID_INIT_INO (linux/proc_ns.h)."""
_INITS = ("systemd", "init")
_PROC = Path("/proc")


def is_contained(proc: Path = _PROC) -> bool:
    """Tell whether /proc shows a container's processes only; its folders are then its own, too.

    A container that is a machine, with an init as its first process (LXC's, a node of kind), is a host here: what
    manages its network runs in it. One that sees the host's processes (`hostPID`) is not told from the host.
    """
    try:
        first = (proc / "1/comm").read_text(errors="replace").strip()  # cut after 15 bytes, also within a letter
        return str((proc / "self/ns/pid").readlink()) != _FIRST and first not in _INITS
    except OSError:  # a kernel without PID namespaces has no containers
        return False
