"""The registry file on disk: read whole, changed under a lock, replaced atomically. Everything here may block."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from flannel_udp.errors import RegistryDenied, RegistryError
from flannel_udp.files.atomic import replace_file
from flannel_udp.registry.file.document import Document, format_document, parse_document

NEW_FILE_MODE = 0o644
EMPTY = b'{"config": null, "subnets": {}}'
"""What a file that does not exist says."""

_Result = TypeVar("_Result")


class Version(NamedTuple):
    """What `stat` tells about one state of the file; all zero while there is no file."""

    inode: int = 0
    size: int = 0
    mtime_ns: int = 0


class FileStore:
    """One registry file.

    The lock is a file of its own, ``PATH.lock``, that is never removed: the registry file itself is replaced by every
    change, so a lock on it would hold back nobody, and a lock on the directory would be shared with strangers and is
    refused by NFS.
    """

    def __init__(self, path: Path) -> None:
        # A link is followed once, here: replacing the file must not replace the link.
        self.path = path.resolve()
        self._lock_path = self.path.with_name(f"{self.path.name}.lock")

    def version(self) -> Version:
        """Return what changes with every change of the file. Raises `RegistryError`."""
        with self._errors("read"):
            try:
                return _version(self.path.stat())
            except FileNotFoundError:
                return Version()

    def read(self) -> tuple[Document, Version]:
        """Return the document, empty if there is no file, and its version. Raises `RegistryError`."""
        raw, version = self._read()
        return self._parse(raw), version

    def update(self, change: Callable[[Document], _Result]) -> _Result:
        """Let `change` alter the document and write it back unless nothing differs or `change` raises.

        Raises `BlockingIOError` if somebody else holds the lock, `RegistryError` if the file cannot be read or written.
        """
        with self._lock():
            raw, _ = self._read()
            document = self._parse(raw)
            result = change(document)
            if document != self._parse(raw):
                with self._errors("write"):
                    self._replace(format_document(document))
            return result

    def _read(self) -> tuple[bytes, Version]:
        with self._errors("read"):
            try:
                with self.path.open("rb") as file:
                    return file.read(), _version(os.fstat(file.fileno()))
            except FileNotFoundError:
                return EMPTY, Version()

    def _parse(self, raw: bytes) -> Document:
        try:
            return parse_document(raw)
        except ValueError as error:
            raise RegistryError(f"registry file {self.path}: {error}") from None

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with self._errors("lock"):
            lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, NEW_FILE_MODE)
        try:
            with self._errors("lock"):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        finally:
            os.close(lock)  # which also lets go of the lock

    def _replace(self, raw: bytes) -> None:
        """Replace the file by one with the same owner and mode."""
        if not self.path.exists():
            replace_file(self.path, raw, NEW_FILE_MODE)
            return
        if not os.access(self.path, os.W_OK, effective_ids=True):
            # Renaming over it would work, but somebody has write-protected this file.
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        old = self.path.stat()

        def keep_owner_and_mode(descriptor: int) -> None:
            # Refused without CAP_CHOWN, unless we are the owner and in the group: the new file is ours then.
            with contextlib.suppress(PermissionError):
                os.fchown(descriptor, old.st_uid, old.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(old.st_mode))

        replace_file(self.path, raw, NEW_FILE_MODE, keep_owner_and_mode)

    @contextlib.contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        """Turn what the system says into our errors; a lock that is held stays `BlockingIOError`."""
        try:
            yield
        except BlockingIOError:
            raise
        except OSError as error:
            missing = error.errno == errno.ENOENT
            reason = "its directory does not exist" if missing else error.strerror or str(error)
            denied = error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}
            kind = RegistryDenied if denied else RegistryError
            raise kind(f"cannot {action} registry file {self.path}: {reason}") from None


def _version(status: os.stat_result) -> Version:
    return Version(status.st_ino, status.st_size, status.st_mtime_ns)
