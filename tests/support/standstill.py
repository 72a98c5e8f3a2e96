"""Let another process stand still, or one thread of it while all others go on: by ptrace(2), as a debugger would."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# linux/ptrace.h
_PTRACE_DETACH, _PTRACE_SEIZE, _PTRACE_INTERRUPT = 17, 0x4206, 0x4207
_WALL = 0x40000000  # linux/wait.h: threads, too
_TRIES = 100

_libc = ctypes.CDLL(None, use_errno=True)


def freeze(pid: int) -> None:
    """Stop a process (SIGSTOP), and return once none of its threads runs: kill(2) returns before that."""
    os.kill(pid, signal.SIGSTOP)
    until_s = time.monotonic() + 10
    while any(_state(task) not in "TZ" for task in Path(f"/proc/{pid}/task").iterdir()):
        assert time.monotonic() < until_s, f"process {pid} does not stop"
        time.sleep(0.001)


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Have a process stand still for the block: what is done there is all done when it sees it."""
    freeze(pid)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _state(task: Path) -> str:
    """Return a thread's state as proc(5) has it, behind its name, which may hold anything; gone is a zombie's."""
    try:
        return (task / "stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return "Z"


def _ptrace(request: int, tid: int) -> None:
    if _libc.ptrace(ctypes.c_long(request), ctypes.c_long(tid), None, None) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace request {request:#x} of thread {tid}: {os.strerror(number)}")


@contextmanager
def standstill(tid: int) -> Iterator[None]:
    """Stop the thread `tid` where it waits in a system call, and so without the interpreter's lock, for the block.

    The process must get no signal meanwhile.
    """
    _ptrace(_PTRACE_SEIZE, tid)
    _interrupt(tid)
    try:
        for _ in range(_TRIES):
            if Path(f"/proc/{tid}/syscall").read_text().split()[0] != "-1":
                break
            _ptrace(_PTRACE_DETACH, tid)
            time.sleep(0.01)
            _ptrace(_PTRACE_SEIZE, tid)
            _interrupt(tid)
        else:
            raise AssertionError(f"thread {tid} is never found waiting")
        yield
    finally:
        _ptrace(_PTRACE_DETACH, tid)


def _interrupt(tid: int) -> None:
    _ptrace(_PTRACE_INTERRUPT, tid)
    os.waitpid(tid, _WALL)
