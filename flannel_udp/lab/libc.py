"""Calls of the C library that Python 3.11 has not: for namespaces(7), mounts, and the end of a parent."""

from __future__ import annotations

import ctypes
import os

# <linux/sched.h>
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWUSER = 0x0002_0000, 0x0400_0000, 0x1000_0000
CLONE_NEWPID, CLONE_NEWNET = 0x2000_0000, 0x4000_0000
# <sys/mount.h>
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 0x1, 0x2, 0x4, 0x8
MS_BIND, MS_REC, MS_SLAVE = 0x1000, 0x4000, 0x8_0000
MNT_DETACH = 0x2
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def call(name: str, *arguments: bytes | int | None) -> None:
    """Call a function that returns 0. Raises OSError, whose file name is the call with its words."""
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) != 0:
        number = ctypes.get_errno()
        words = (argument.decode() for argument in arguments if isinstance(argument, bytes))
        raise OSError(number, os.strerror(number), " ".join([name, *words]))


def mount(source: str, target: str, kind: str, flags: int = 0, data: str | None = None) -> None:
    """Mount a file system. Raises OSError."""
    call("mount", source.encode(), target.encode(), kind.encode(), flags, None if data is None else data.encode())


def bind(source: str, target: str) -> None:
    """Show a folder, with all that is mounted below, or a file at another place, too. Raises OSError."""
    call("mount", source.encode(), target.encode(), None, MS_BIND | MS_REC, None)
