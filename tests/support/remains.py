"""What a test module must not leave behind: descriptors, threads, processes, network namespaces.

A leak harms the modules after it: `select` takes no descriptor beyond 1023, and a process that still runs holds ports,
namespaces and the machine's time. Standard library only: every test environment has this.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Set
from contextlib import suppress
from pathlib import Path

PATIENCE_S = 3.0
_POLL_S = 0.05
_NETNS_DIR = Path("/run/netns")


def present() -> frozenset[str]:
    """Return a line for everything of this process's that a test could leave behind."""
    return frozenset({*_descriptors(), *_threads(), *_children(), *_namespaces()})


def left_since(before: Set[str]) -> list[str]:
    """Return what is there now and was not then, after it had `PATIENCE_S` seconds to go."""
    deadline_s = time.monotonic() + PATIENCE_S
    while left := present() - before:
        if time.monotonic() >= deadline_s:
            break
        gc.collect()  # what only a reference cycle holds is not left for ever
        time.sleep(_POLL_S)
    return sorted(left)


def _descriptors() -> set[str]:
    """What is open, by number: the same file under another number is one more."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile, as the one that lists the folder
            found.add(f"descriptor {entry.name}: {entry.readlink()}")
    return found


def _threads() -> set[str]:
    return {f"thread {thread.name} ({thread.ident})" for thread in threading.enumerate()}


def _children() -> set[str]:
    """Our child processes, those included that ended and were not waited for."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                stat = (entry / "stat").read_text()
                command = (entry / "cmdline").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            # proc(5): "pid (comm) state ppid …", and comm may hold spaces and parentheses.
            if int(stat.rpartition(")")[2].split()[1]) == os.getpid():
                found.add(f"process {entry.name}: {command.replace(chr(0), ' ').strip() or 'ended, not waited for'}")
    return found


def _namespaces() -> set[str]:
    """The namespaces whose names `tests.support.labs.fresh_name` made in this process."""
    return {f"namespace {path.name}" for path in _NETNS_DIR.glob(f"*test{os.getpid()}-*")}
