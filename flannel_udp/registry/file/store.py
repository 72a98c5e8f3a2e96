"""The registry file on disk: read whole, changed under a lock, replaced atomically. Everything here may block.

A file that was there and is not any more is an outage, never an empty registry: an editor's or a configuration tool's
rename, a folder that is unmounted, a mounted ConfigMap that is exchanged. One that never was is empty.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from flannel_udp.errors import RegistryDenied, RegistryError
from flannel_udp.files.atomic import change_attributes, draft_of, replace_file
from flannel_udp.registry.file.document import Document, format_document, parse_document

NEW_FILE_MODE = 0o644
LOCK_MODE = 0o600
"""Whoever may open a file may lock it, and so hold up everybody else."""
IN_PLACE_S = 0.05
"""How often somebody who may be writing the file in place is looked after, seconds."""
IN_PLACE_LOOKS = 4
"""So many looks at one and the same content: nobody is writing it."""
IN_PLACE_MAX_S = 2.0
"""Who writes it in place all the time is no excuse for longer than this, seconds."""
EMPTY = b'{"config": null, "subnets": {}}'
"""What a file that does not exist says."""


_DENIED = frozenset((errno.EACCES, errno.EPERM, errno.EROFS))

_Result = TypeVar("_Result")


class Version(NamedTuple):
    """What `stat` tells about one state of the file; all zero while there is no file."""

    device: int = 0
    inode: int = 0
    size: int = 0
    mtime_ns: int = 0


class FileStore:
    """One registry file.

    The lock is a file of its own, ``PATH.lock``, that is never removed: the registry file itself is replaced by every
    change, so a lock on it would hold back nobody, and a lock on the directory would be shared with strangers and is
    refused by NFS.
    """

    def __init__(self, path: Path, *, was_there: bool = False) -> None:
        self.path = path.absolute()
        self._was_there = was_there
        self.caveat: str | None = None
        """What a crash could cost, as the last write found; ``None`` if nothing."""

    def version(self) -> Version:
        """Return what changes with every change of the file. Raises `RegistryError`."""
        with self._errors("read"):
            try:
                return _version(self.path.stat())
            except FileNotFoundError:
                self._require_never_there()
                return Version()

    def read(self) -> tuple[Document, Version]:
        """Return the document, empty if there never was a file, and its version. Raises `RegistryError`."""
        _, document, version = self._read_whole()
        return document, version

    def update(self, change: Callable[[Document], _Result]) -> _Result:
        """Let `change` alter the document, and write it back.

        Nothing is written if nothing differs, or `change` raises. Then a lock that cannot be had is none that is
        needed: a file in a read-only directory may well hold our entry. Raises `BlockingIOError` if somebody else
        holds the lock, `RegistryError` if the file cannot be read or written.
        """
        try:
            with self._lock() as target:
                result, document = self._change(change)
                if document is not None:
                    with self._errors("write"):
                        self._replace(target, format_document(document))
                return result
        except (RegistryDenied, BlockingIOError):
            result, document = self._change(change)
            if document is not None:
                raise
            return result

    def describe_lock_holder(self) -> str:
        """Return which process holds the lock, in brackets, as far as the kernel tells us; else nothing."""
        with contextlib.suppress(OSError):
            inode = _lock_of(self._target()).stat().st_ino
            for line in (
                Path("/proc/locks").read_text().splitlines()
            ):  # proc(5): "1: FLOCK ADVISORY WRITE 700 00:1a:56 0 EOF"
                fields = line.split()
                if len(fields) > 5 and fields[1] == "FLOCK" and fields[5].endswith(f":{inode}"):
                    # A name is cut after 15 bytes, also in the middle of a letter of UTF-8.
                    name = Path("/proc", fields[4], "comm").read_text(errors="replace").strip()
                    return f" (process {fields[4]}, {name!r})"
        return ""

    def _change(self, change: Callable[[Document], _Result]) -> tuple[_Result, Document | None]:
        """Return what `change` returns, and the document to write, ``None`` if it is as it was."""
        raw, before, _ = self._read_whole()
        document = self._parse(raw)
        result = change(document)
        return result, None if document == before else document

    def _read_whole(self) -> tuple[bytes, Document, Version]:
        """Read the file; one that makes no sense somebody may be writing in place, so until it makes sense or stays."""
        ends_s = time.monotonic() + IN_PLACE_MAX_S
        before, n_alike = None, 0
        while True:
            raw, version = self._read()
            n_alike = n_alike + 1 if raw == before else 1
            try:
                return raw, self._parse(raw), version
            except RegistryError:
                if n_alike >= IN_PLACE_LOOKS or time.monotonic() >= ends_s:
                    raise
            before = raw
            time.sleep(IN_PLACE_S)

    def _read(self) -> tuple[bytes, Version]:
        with self._errors("read"):
            try:
                # O_NONBLOCK: to open a FIFO would wait for somebody to write into it.
                descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except FileNotFoundError:
                self._require_never_there()
                return EMPTY, Version()
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    raise OSError(errno.EISDIR, "Is a directory" if stat.S_ISDIR(status.st_mode) else "No regular file")
                self._was_there = True
                with open(descriptor, "rb", closefd=False) as file:
                    return file.read(), _version(status)
            finally:
                os.close(descriptor)

    def _require_never_there(self) -> None:
        """Raise `RegistryError` if there was a file: that it is gone says nothing about the subnets."""
        if self._was_there:
            raise RegistryError(f"registry file {self.path} is gone: put it back")

    def _parse(self, raw: bytes) -> Document:
        try:
            return parse_document(raw)
        except ValueError as error:
            draft = draft_of(self._target())
            left = f"; an interrupted write left what it wrote in {draft}" if draft.exists() else ""
            raise RegistryError(f"registry file {self.path}: {error}{left}") from None

    def _target(self) -> Path:
        """Return the file that the path leads to now: replacing it must not replace a link, and links are exchanged."""
        return Path(os.path.realpath(self.path))

    @contextlib.contextmanager
    def _lock(self) -> Iterator[Path]:
        """Hold the lock, and say of which file it is."""
        target = self._target()
        with self._errors("lock"):
            lock = _open_lock(target)
        try:
            with self._errors("lock"):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._target() != target:
                raise BlockingIOError("a link was exchanged")
            yield target
        finally:
            os.close(lock)  # which also lets go of the lock

    def _replace(self, target: Path, raw: bytes) -> None:
        """Replace the file by one with the same owner and mode."""
        try:
            # Renaming over it would work also where somebody has write-protected this file.
            descriptor = os.open(target, os.O_WRONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self.caveat = replace_file(target, raw, NEW_FILE_MODE)
            self._was_there = True
            return
        old = os.fstat(descriptor)
        os.close(descriptor)

        def keep_owner_and_mode(descriptor: int) -> None:
            # Refused without CAP_CHOWN, unless we are the owner and in the group: the new file is ours then.
            change_attributes(lambda: os.fchown(descriptor, old.st_uid, old.st_gid))
            change_attributes(lambda: os.fchmod(descriptor, stat.S_IMODE(old.st_mode)))

        self.caveat = replace_file(target, raw, stat.S_IMODE(old.st_mode), keep_owner_and_mode)

    @contextlib.contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        """Turn what the system says into our errors; a lock that is held stays `BlockingIOError`."""
        try:
            yield
        except BlockingIOError:
            raise
        except OSError as error:
            missing = error.errno == errno.ENOENT
            reason = f"its directory does not exist: make it (mkdir -p {self.path.parent})" if missing else None
            denied = error.errno in _DENIED
            kind = RegistryDenied if denied else RegistryError
            raise kind(f"cannot {action} registry file {self.path}: {reason or error.strerror or error}") from None


def _lock_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.lock")


def _open_lock(target: Path) -> int:
    """Return a descriptor to lock; that of the file itself where its directory can hold no other. Raises `OSError`."""
    try:
        lock = os.open(_lock_of(target), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, LOCK_MODE)
    except OSError as refused:
        if refused.errno not in _DENIED or os.access(target.parent, os.W_OK, effective_ids=True):
            raise
        try:
            return os.open(target, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            raise refused from None
    change_attributes(lambda: os.fchmod(lock, LOCK_MODE))  # an earlier version's lets everybody in
    return lock


def _version(status: os.stat_result) -> Version:
    return Version(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
