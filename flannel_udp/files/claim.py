"""One process at a time keeps a file: an advisory lock of its own, which only its user may open."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from flannel_udp.errors import FlannelError


class Claim:
    """The right to keep the file at `path`; the lock is a hidden file beside it, mode 0600, that goes with the claim.

    The kernel lets go of it when the process ends, however that happens.
    """

    def __init__(self, path: Path) -> None:
        self._lock = path.with_name(f".{path.name}.lock")
        self._path = path
        self._fd: int | None = None

    def take(self) -> None:
        """Take it unless it is ours already; never waits. Raises `FlannelError` if another has it, `OSError`."""
        if self._fd is not None and _is_at(self._lock, self._fd):
            return
        self._let_go()  # of a file that somebody has removed
        # Not for writing: the folder's file system could not be made read-only while we run.
        flags = os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(self._lock, flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_at(self._lock, fd):  # whoever had it has ended, and removed it, between our two calls
                raise BlockingIOError
        except BlockingIOError:
            holder = os.pread(fd, 20, 0).decode(errors="replace").strip()
            os.close(fd)
            raise FlannelError(f"another agent (process {holder or 'unknown'}) keeps {self._path}") from None
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        with suppress(OSError):  # a full disk: the number is missing in somebody's message
            self._lock.write_text(f"{os.getpid()}\n")

    def close(self) -> None:
        """Give it back."""
        if self._fd is not None and _is_at(self._lock, self._fd):
            with suppress(OSError):
                self._lock.unlink()
        self._let_go()

    def _let_go(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _is_at(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(fd))
    except OSError:
        return False
