"""Who used the processors: the daemons that are measured, the whole machine, and everybody who is no part of the bench.

All figures are CPU seconds from /proc, whose clock ticks SC_CLK_TCK times a second (usually 100).
"""

from __future__ import annotations

import os
import time
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from flannel_udp.errors import FlannelError

_PROC = Path("/proc")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_KTHREADD = 2


@dataclass(frozen=True, slots=True)
class ProcessCpu:
    """What one process used; `waited_s` is what its ended and collected children used before."""

    parent: int
    own_s: float
    waited_s: float


@dataclass(frozen=True, slots=True)
class MachineCpu:
    """What all processors did. `stolen_s` is what the hypervisor gave to other virtual machines."""

    busy_s: float
    stolen_s: float


def parse_process(text: str) -> ProcessCpu:
    """Return what /proc/PID/stat says, proc(5). The name in the second field may hold blanks and parentheses.

    And any bytes: what a process calls itself is cut after 15 of them, also in the middle of a letter of UTF-8.
    """
    fields = text.rpartition(")")[2].split()  # fields[0] is the third field of proc(5), the state
    utime, stime, cutime, cstime = (int(field) for field in fields[11:15])
    return ProcessCpu(int(fields[1]), (utime + stime) / _TICKS_PER_S, (cutime + cstime) / _TICKS_PER_S)


def parse_machine(text: str) -> MachineCpu:
    """Return what the first line of /proc/stat says, proc(5); guests are contained in user."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(field) for field in text.split()[1:9])
    return MachineCpu((user + nice + system + irq + softirq) / _TICKS_PER_S, steal / _TICKS_PER_S)


def read_machine() -> MachineCpu:
    """Return what all processors did since the machine started."""
    return parse_machine((_PROC / "stat").read_text())


def daemons_cpu_s(pids: Iterable[int]) -> float:
    """Return what the daemons used since they started, all threads. Raises `FlannelError` if one has ended."""
    try:
        return sum(parse_process((_PROC / str(pid) / "stat").read_text(errors="replace")).own_s for pid in pids)
    except (FileNotFoundError, ProcessLookupError) as gone:
        raise FlannelError(f"a daemon ended while it was measured: {gone.filename} is gone") from None


def foreign(processes: Mapping[int, ProcessCpu], ours: Container[int]) -> dict[int, ProcessCpu]:
    """Return the processes that are neither kernel threads nor among `ours` nor descended from them.

    Kernel threads are left out because they move the packets that are measured.
    """

    def is_foreign(pid: int) -> bool:
        while pid not in (0, 1):
            if pid == _KTHREADD or pid in ours:
                return False
            pid = processes[pid].parent if pid in processes else 0  # a parent that was gone when its turn came
        return True

    return {pid: process for pid, process in processes.items() if is_foreign(pid)}


def used_between_s(before: Mapping[int, ProcessCpu], after: Mapping[int, ProcessCpu]) -> float:
    """Return what processes used from one reading to the next.

    Collected children are counted with their parent, so a process that came and went meanwhile is seen all the same.
    One that ended and is counted nowhere, as its parent was read before, takes all that it ever used out of the sum:
    what those used that are still there is the least that it can have been.
    """
    in_all = sum(each.own_s + each.waited_s for each in after.values())
    in_all -= sum(each.own_s + each.waited_s for each in before.values())
    still_there = sum(max(each.own_s - before[pid].own_s, 0.0) for pid, each in after.items() if pid in before)
    return max(in_all, still_there)


def read_processes() -> dict[int, ProcessCpu]:
    """Return all processes of the machine."""
    processes = {}
    for entry in _PROC.iterdir():
        if entry.name.isdecimal():
            try:
                processes[int(entry.name)] = parse_process((entry / "stat").read_text(errors="replace"))
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended meanwhile
    return processes


@dataclass(frozen=True, slots=True)
class ForeignWatch:
    """A moment from which on the load of others is watched: of all but this process, `ours`, and their descendants."""

    ours: tuple[int, ...]
    at_s: float
    others: Mapping[int, ProcessCpu]
    stolen_s: float

    @classmethod
    def start(cls, ours: tuple[int, ...] = ()) -> Self:
        """Begin to watch."""
        return cls(ours, time.monotonic(), _others(ours), read_machine().stolen_s)

    def share(self) -> float:
        """Return what others used since, as a share of one processor: 1.0 is one processor kept busy."""
        used_s = used_between_s(self.others, _others(self.ours)) + read_machine().stolen_s - self.stolen_s
        return used_s / (time.monotonic() - self.at_s)


def _others(ours: tuple[int, ...]) -> dict[int, ProcessCpu]:
    return foreign(read_processes(), (os.getpid(), *ours))
