"""`ip monitor` on a host: what the kernel tells of changes while something else happens."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flannel_udp.lab.node import Host
from tests.support.agents import wait_for


@contextmanager
def ip_monitor(host: Host, told: Path, *words: str) -> Iterator[None]:
    """Write what `ip WORDS` tells to a file, from before the block begins, and to its end."""
    with told.open("w") as file, host.popen(["ip", *words], stdout=file) as monitor:
        try:
            wait_for("it listens", lambda: _listens(monitor))
            yield
        finally:
            monitor.terminate()


def _listens(monitor: subprocess.Popen[str]) -> bool:
    """Tell whether a netlink socket of that process is in multicast groups (columns Pid and Groups)."""
    rows = Path(f"/proc/{monitor.pid}/net/netlink").read_text().splitlines()[1:]
    return any(row.split()[2] == str(monitor.pid) and int(row.split()[3], 16) for row in rows)
