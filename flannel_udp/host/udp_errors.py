"""Datagrams that this network namespace received with a wrong checksum, whoever they were for: asked of the kernel."""

from __future__ import annotations

from pathlib import Path

_NET = Path("/proc/thread-self/net")  # is there where /proc shows processes only (subset=pid), too


def read_checksum_errors() -> int:
    """Return how many there were, by UDP over IPv4 and IPv6; no socket is told of them. Raises `OSError`."""
    names, values = (line.split() for line in (_NET / "snmp").read_text().splitlines() if line.startswith("Udp:"))
    found = int(dict(zip(names, values, strict=True)).get("InCsumErrors", 0))
    v6 = _NET / "snmp6"  # not there where the kernel has no IPv6
    rows = v6.read_text().splitlines() if v6.exists() else []
    return found + sum(int(row.split()[1]) for row in rows if row.startswith("Udp6InCsumErrors "))
