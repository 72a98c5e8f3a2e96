"""Network namespaces by name, and the processes inside them. Made with iproute2, so `ip netns` shows them too."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from flannel_udp.errors import FlannelError
from flannel_udp.lab import libc

NETNS_DIR = Path("/run/netns")
_IP_TIMEOUT_S, _COMMAND_TIMEOUT_S = 90.0, 0.002
"""For a batch, and for each of its commands beside: a machine that has other work sets 200,000 routes in a minute."""
_KILL_TIMEOUT_S = 30.0
"""For what is killed: it still has to close its files, each tunnel device one after the other on all of the machine."""
_POLL_S = 0.02

T = TypeVar("T")


def require() -> None:
    """Raise `FlannelError` with one clear line unless this process may make network namespaces."""
    if os.geteuid() != 0:
        raise FlannelError("the lab needs root, because it makes network namespaces: run it with sudo")
    if shutil.which("ip") is None:
        raise FlannelError("the lab needs the command `ip`: install the package iproute2")


def ip_batch(lines: Iterable[str], *, namespace: str | None = None, keep_going: bool = False) -> None:
    """Run `ip` once for all the lines, in `namespace` or in ours. Raises `FlannelError` naming the line that failed."""
    commands = list(lines)
    argv = ["ip", *(["-n", namespace] if namespace else []), *(["-force"] if keep_going else []), "-batch", "-"]
    where = f"in namespace {namespace}" if namespace else "on this machine"
    stdin, timeout_s = "\n".join(commands) + "\n", _IP_TIMEOUT_S + len(commands) * _COMMAND_TIMEOUT_S
    try:
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        raise FlannelError(f"{len(commands)} commands of `ip` were not done {where} in {timeout_s:.0f} s") from None
    if done.returncode != 0 and not keep_going:
        # iproute2 ends its complaint with "Command failed -:LINE".
        reason, _, number = done.stderr.strip().rpartition("\nCommand failed -:")
        command = commands[int(number) - 1] if number.isdecimal() else " ".join(argv)
        cause = (reason or done.stderr).strip().splitlines()
        raise FlannelError(f"`ip {command}` failed {where}: {cause[0] if cause else f'exit {done.returncode}'}")


def names() -> list[str]:
    """Return the names of all network namespaces that `ip netns` knows."""
    return sorted(path.name for path in NETNS_DIR.iterdir()) if NETNS_DIR.is_dir() else []


def identity(path: Path) -> tuple[int, int] | None:
    """Return device and inode of a namespace file, which tell namespaces apart; ``None`` if gone or a zombie's."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def processes(namespaces: Iterable[str]) -> dict[int, str]:
    """Return the ids of the live processes inside the namespaces, each with its namespace; never our own."""
    by_identity = {found: name for name in namespaces if (found := identity(NETNS_DIR / name))}
    inside = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            found = identity(entry / "ns" / "net")
            if found in by_identity:
                inside[int(entry.name)] = by_identity[found]
    return inside


def holds(namespace: str, pid: int) -> bool:
    """Tell whether process `pid` lives (a zombie does not) and is inside the namespace."""
    inside = identity(Path(f"/proc/{pid}/ns/net"))
    return inside is not None and inside == identity(NETNS_DIR / namespace)


def is_readable(fd: int, timeout_s: float) -> bool:
    """Wait until the descriptor is readable, whatever its number is: select(2) takes none beyond 1023."""
    waiting = select.poll()
    waiting.register(fd, select.POLLIN)
    return bool(waiting.poll(timeout_s * 1000))


def end_process(namespace: str, pid: int, number: signal.Signals, timeout_s: float = 0.0) -> bool:
    """Signal process `pid` and return whether it has ended `timeout_s` later, with all its files closed.

    A number that meanwhile belongs to a process outside the namespace is left alone: ours has ended.
    """
    try:
        pidfd = os.pidfd_open(pid)  # pins the process: all that follows is about this very one
    except ProcessLookupError:
        return True
    try:
        inside = identity(Path(f"/proc/{pid}/ns/net"))
        if inside == identity(NETNS_DIR / namespace):
            signal.pidfd_send_signal(pidfd, number)
        elif inside is not None:
            return True
        # A process leaves its namespace before it closes its files, and only then the descriptor becomes readable.
        return is_readable(pidfd, timeout_s)
    except ProcessLookupError:
        return True
    finally:
        os.close(pidfd)


def wait_until(done: Callable[[], bool], timeout_s: float) -> bool:
    """Poll `done` until it holds or the time is up; return what it said last."""
    deadline = time.monotonic() + timeout_s
    while not (answer := done()) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return answer


def stop_processes(namespaces: Sequence[str], *, term_timeout_s: float = 3.0) -> None:
    """End every process inside the namespaces: SIGTERM, and SIGKILL for what is still there after `term_timeout_s`."""
    for number, timeout_s in ((signal.SIGTERM, term_timeout_s), (signal.SIGKILL, _KILL_TIMEOUT_S)):
        for pid, namespace in processes(namespaces).items():
            end_process(namespace, pid, number)
        if wait_until(lambda: not processes(namespaces), timeout_s):
            return
    left = ", ".join(map(str, processes(namespaces)))
    raise FlannelError(f"processes {left} did not end on SIGKILL: try `lab down` again")


def call_inside(namespace: str, function: Callable[[], T]) -> T:
    """Return what `function` returns when run inside the namespace, in a thread of its own that ends afterwards.

    A socket belongs for life to the namespace of the thread that made it, so ``call_inside(ns, socket.socket)``
    hands out one to use from anywhere; writing /proc/sys/net works the same way.
    """

    def inside() -> T:
        enter(namespace)
        return function()

    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(inside).result()


def write_sysctls(namespace: str, settings: Mapping[str, int]) -> None:
    """Write these files below /proc/sys/net of a namespace. Raises `FlannelError` for what this kernel has not."""

    def write() -> None:
        for name, value in settings.items():
            try:
                Path("/proc/sys/net", name).write_text(f"{value}\n")
            except OSError as error:
                raise FlannelError(f"cannot write /proc/sys/net/{name}: {error.strerror}") from None

    call_inside(namespace, write)


def enter(namespace: str) -> None:
    """Move the calling thread, and no other, into the namespace."""
    try:
        fd = os.open(NETNS_DIR / namespace, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise FlannelError(f"there is no network namespace {namespace}") from None
    try:
        libc.call("setns", fd, libc.CLONE_NEWNET)
    except OSError as error:
        raise FlannelError(f"cannot enter the network namespace {namespace}: {error.strerror}") from None
    finally:
        os.close(fd)
