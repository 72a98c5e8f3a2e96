"""The process that keeps an ordinary user's namespaces between two commands of a lab, and ends with them.

It is the first process of a PID namespace (pid_namespaces(7)): when it ends, however it ends, the kernel kills whatever
still runs in there. Its own business is to wait, and to collect those whose parents have ended.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from flannel_udp.errors import FlannelError
from flannel_udp.lab import libc
from flannel_udp.lab.netns import ip_batch

NAMESPACES = libc.CLONE_NEWUSER | libc.CLONE_NEWNS | libc.CLONE_NEWPID | libc.CLONE_NEWNET
_RUN = Path("/run")
_OF_LABS = ("netns", "flannel-udp-lab")
"""What root's labs have in /run: an ordinary user has his own."""
_LOOK_S = 5.0
"""How often the holder looks whether its file is still there: with the last session systemd removes the folder."""


def become_holder(file: int) -> NoReturn:
    """Make the file system what labs need, and go on as the holder, in place of this process, a namespace's first.

    `file`, a descriptor, is that which says where the holder is. Raises `FlannelError`.
    """
    os.setsid()  # the terminal may go
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    _mount("proc", "/proc", libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC)
    read_only = os.statvfs("/sys").f_flag & os.ST_RDONLY
    _mount("sysfs", "/sys", libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC | (libc.MS_RDONLY if read_only else 0))
    _cover_run()
    ip_batch(["link set lo up"])
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    os.chdir("/")
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - of numbers
        with suppress(OSError):  # what the list was read by
            os.set_inheritable(int(name), int(name) in (0, 1, 2, file))  # what a shell holds open ends with the command
    # -P: not whatever lies in a folder. In place of a fork of the command it is small, and `ps` shows what it is.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "flannel_udp.lab.holder", str(file)])  # noqa: S606


def _mount(kind: str, place: str, flags: int, data: str | None = None) -> None:
    try:
        libc.mount(kind, place, kind, flags, data)
    except OSError as error:
        raise FlannelError(
            f"a lab without root needs {kind} at {place}, and here it cannot be mounted ({error.strerror}): "
            "does a container hide a part of it? Run it as root, or outside"
        ) from None


def _cover_run() -> None:
    """Put a /run there that may be written; what the machine's has is in it, but for root's labs, and single files."""
    machine = os.open(_RUN, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    _mount("tmpfs", str(_RUN), libc.MS_NOSUID | libc.MS_NODEV, "mode=755")
    for name in os.listdir(machine):  # noqa: PTH208 - by a descriptor
        there, here = Path(f"/proc/self/fd/{machine}", name), _RUN / name
        with suppress(OSError):  # what cannot be shown is missing, as on a machine that has it not
            if there.is_symlink():
                here.symlink_to(there.readlink())
            elif there.is_dir() and name not in _OF_LABS:
                here.mkdir()
                libc.bind(str(there), str(here))
    os.close(machine)


def hold(file: int) -> None:
    """Wait for SIGTERM, or until the file is removed."""
    while os.fstat(file).st_nlink and signal.sigtimedwait([signal.SIGTERM], _LOOK_S) is None:
        pass


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so the kernel collects them
    hold(int(sys.argv[1]))
