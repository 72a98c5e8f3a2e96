"""What a test module must not leave behind: descriptors, threads, processes, network namespaces.

A leak harms the modules after it: `select` takes no descriptor beyond 1023, and a process that still runs holds ports,
namespaces and the machine's time.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Set
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.patience import promised

LEAVING_S = 3.0
_POLL_S = 0.05
_NETNS_DIR = Path("/run/netns")
_OF_GRPC = ("anon_inode:[eventpoll]", "anon_inode:[eventfd]")
"""It opens and closes these as it likes. An engine's epoll descriptor never comes alone: its sockets are seen."""

_OF_CTYPES = "libffi.so"
"""From its first callback on, libffi has its own file open to map trampolines from (built so in Debian 14)."""


def present() -> frozenset[str]:
    """Return a line for everything of this process's that a test could leave behind."""
    return frozenset({*_descriptors(), *_threads(), *_children(), *_namespaces()})


def left_since(before: Set[str]) -> list[str]:
    """Return what is there now and was not then, after it had `LEAVING_S` seconds to go, on a busy machine more."""
    deadline_s = time.monotonic() + promised(LEAVING_S)
    while left := present() - before:
        if time.monotonic() >= deadline_s:
            break
        gc.collect()  # what only a reference cycle holds is not left for ever
        subprocess.run(["true"], check=True)  # a Popen waits for what ended and whose own Popen has gone
        time.sleep(_POLL_S)
    return sorted(left)


def _descriptors() -> set[str]:
    """What is open, by number: the same file under another number is one more."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile, as the one that lists the folder
            target = str(entry.readlink())
            of_grpc = target in _OF_GRPC and "grpc" in sys.modules
            if not of_grpc and not Path(target).name.startswith(_OF_CTYPES):
                found.add(f"descriptor {entry.name}: {target}")
    return found


def _threads() -> set[str]:
    return {f"thread {thread.name} ({thread.ident})" for thread in threading.enumerate()}


def _children() -> set[str]:
    """Our child processes, those included that ended and were not waited for."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread ended meanwhile
            found |= {f"process {pid}: {_command_of(pid)}" for pid in (task / "children").read_text().split()}
    return found


def _command_of(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip() or "ended, not waited for"
    except (FileNotFoundError, ProcessLookupError):
        return "ended"


def _namespaces() -> set[str]:
    """The namespaces whose names `tests.support.labs.fresh_name` made in this process."""
    return {f"namespace {path.name}" for path in _NETNS_DIR.glob(f"*test{os.getpid()}-*")}


class Check:
    """The plugin for pytest. (As hooks of a conftest.py it would not hear of the session's fixtures.)"""

    def __init__(self) -> None:
        self._expected: set[str] = set()

    def pytest_sessionstart(self) -> None:
        """Let libuv open what it opens once a process, a pipe for signals; see what there is."""
        with suppress(ImportError):  # not every test environment has it
            import uvloop

            uvloop.new_event_loop().close()
        self._expected.update(present())

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[object]) -> Generator[None, object, object]:
        """What a fixture of the session opens may outlive the module that asks for it first."""
        if fixturedef.scope != "session":
            return (yield)
        before = present()
        made = yield
        self._expected.update(present() - before)
        return made

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None]:
        """Fail a module that leaves anything behind, after its last test."""
        yield
        if nextitem is None or nextitem.path != item.path:
            if isinstance(item, pytest.Function):
                item.funcargs.clear()  # pytest lets go of the fixtures' values only later
            left = left_since(self._expected)
            self._expected.update(left)  # each is told once
            if left:
                pytest.fail("\n".join([f"{item.path.name} left behind:", *left]), pytrace=False)
