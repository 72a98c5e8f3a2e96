"""A lab whose agents do not fit into the memory says how many hosts would."""

from __future__ import annotations

from pathlib import Path

import pytest

from flannel_udp.errors import FlannelError
from flannel_udp.lab import memory


def test_two_hundred_hosts_that_do_not_fit_are_told_how_many_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:        4000000 kB\nMemFree:          100000 kB\nMemAvailable:    2000000 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", meminfo)
    memory.require_memory(44)
    message = r"^200 agents need 9000 MB of memory and 2000 are free: enough for 44 hosts$"
    with pytest.raises(FlannelError, match=message):
        memory.require_memory(200)


def test_this_machine_says_what_is_free() -> None:
    memory.require_memory(1)
