"""Hears of changes to one file by inotify(7): of the file itself, of its folder, and of a link on the way to it."""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

# sys/inotify.h
_IN_CLOSE_WRITE, _IN_MOVED_FROM, _IN_MOVED_TO, _IN_CREATE, _IN_DELETE = 0x8, 0x40, 0x80, 0x100, 0x200
_IN_DELETE_SELF, _IN_MOVE_SELF, _IN_ONLYDIR = 0x400, 0x800, 0x1000000
_MASK = (
    _IN_CLOSE_WRITE
    | (_IN_MOVED_FROM | _IN_MOVED_TO | _IN_CREATE | _IN_DELETE)
    | (_IN_DELETE_SELF | _IN_MOVE_SELF | _IN_ONLYDIR)
)
_EVENT = struct.Struct("=iIII")  # struct inotify_event: watch, mask, cookie, bytes of the name that follows
_READ_BYTES = 65_536

_libc = ctypes.CDLL(None, use_errno=True)


class FileWatch:
    """Calls `changed()` on the running loop when something has become of `path`, until closed.

    Folders are watched by inode: `renew` after the file was written, or what is at the path now may be another one.
    Nothing is heard of mounts, nor of what other machines do to a shared folder: look now and then as well. Raises
    `OSError` where there are no more inotify instances (fs.inotify.max_user_instances).
    """

    def __init__(self, path: Path, changed: Callable[[], None]) -> None:
        self._path = path
        self._changed = changed
        self._watched: set[int] = set()
        self._names: set[bytes] = set()
        self._fd = _check(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._read)
        self.renew()

    def renew(self) -> None:
        """Watch the folders that the path leads through now; one that is not there is not watched."""
        target = Path(os.path.realpath(self._path))
        self._names = {os.fsencode(path.name) for path in (self._path, target)}
        found = {watch for folder in {self._path.parent, target.parent} if (watch := self._add(folder)) is not None}
        for watch in self._watched - found:
            _libc.inotify_rm_watch(self._fd, watch)  # fails for a folder that is gone, which is as well
        self._watched = found

    def close(self) -> None:
        """Hear no more."""
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _add(self, folder: Path) -> int | None:
        with suppress(OSError):
            return _check(_libc.inotify_add_watch(self._fd, os.fsencode(folder), _MASK))
        return None

    def _read(self) -> None:
        with suppress(BlockingIOError):
            if self._concerns(os.read(self._fd, _READ_BYTES)):
                self._changed()

    def _concerns(self, events: bytes) -> bool:
        """Tell whether an event is of our file; one without a name is of a folder, or says that some are lost."""
        offset = 0
        while offset < len(events):
            *_, length = _EVENT.unpack_from(events, offset)
            offset += _EVENT.size
            name = events[offset : offset + length].rstrip(b"\0")
            if not name or name in self._names:
                return True
            offset += length
        return False


def _check(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
