"""Where and when a bench ran: figures mean nothing without it."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flannel_udp import __version__

_ROOT = Path(__file__).parents[2]
"""The clone that this module is in; for an installed package a folder that is no repository's top."""


def describe() -> dict[str, Any]:
    """Return the machine, the software, the date (UTC) and the commit."""
    return {
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "cpu": parse_cpu_model(Path("/proc/cpuinfo").read_text()),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "flannel_udp": __version__,
        "commit": _commit(),
        "iperf3": _output("iperf3", "--version").partition("\n")[0],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def in_one_line() -> str:
    """Return what of it makes another machine, for people."""
    facts = describe()
    return f"{facts['cpu']}, {facts['cores']} cores, {facts['architecture']}, Linux {facts['kernel']}"


def parse_cpu_model(cpuinfo: str) -> str:
    """Return the model in /proc/cpuinfo; arm64 kernels give numbers only, so then the architecture's part number."""
    fields = dict(line.split(":", 1) for line in cpuinfo.splitlines() if ":" in line)
    named = {key.strip(): value.strip() for key, value in fields.items()}
    return named.get("model name") or f"CPU part {named.get('CPU part', 'unknown')}"


def _commit() -> str | None:
    """Return the commit that is checked out, with `-dirty` where files differ; ``None`` outside a repository."""
    if not (_ROOT / ".git").exists():  # git would look upwards, and name the repository that holds an environment
        return None
    return _output("git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--abbrev=12").strip() or None


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout
    except FileNotFoundError:
        return ""
