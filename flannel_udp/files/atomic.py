"""Replace a file whole: readers see the old one or the new one, never half of one.

Not every file system can do all of it, and what is only there for the case of a crash must not count as a failed write:
`replace_file` returns what a crash could cost, in words.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

# Of fsync, fchown and fchmod: this file system has no such thing (FUSE, FAT, 9p, some NFS servers).
_UNSUPPORTED = frozenset((errno.EACCES, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM))
# Of making or renaming the draft: the file is a mount of its own, as a bind mount into a container is, or nobody may
# write its directory. The file itself may take the content all the same. Not ENOSPC: that would lose the old content.
_IN_PLACE = frozenset((errno.EACCES, errno.EBUSY, errno.EPERM, errno.EROFS, errno.EXDEV))


def write_atomically(path: Path, content: bytes, mode: int, directory_mode: int) -> None:
    """Replace the file, which then has `mode` whatever the umask; a missing directory gets `directory_mode`.

    Otherwise as `replace_file`. Raises `OSError`.
    """
    make_directory(path.parent, directory_mode)
    replace_file(path, content, mode, lambda descriptor: os.fchmod(descriptor, mode))


def replace_file(
    path: Path, content: bytes, mode: int = 0o644, prepare: Callable[[int], None] | None = None
) -> str | None:
    """Replace the file by one with `mode`, less the umask; its directory must be there.

    `prepare` gets the new file's descriptor while it is empty and has another name, to change its owner or mode. A
    failed attempt leaves the old file and nothing else; a crash right after it leaves the new file with its whole
    content. Where the file system cannot promise that, the file is written all the same, in place if it cannot be
    replaced, and what a crash could cost is returned as one clause; ``None`` if nothing. Raises `OSError`.
    """
    draft = draft_of(path)
    try:
        lasting = _write_lastingly(draft, content, mode, prepare)
        draft.replace(path)
    except OSError as error:
        if error.errno in _IN_PLACE and path.exists():
            return _write_in_place(path, content, draft, error)
        draft.unlink(missing_ok=True)
        raise
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    return None if _sync_directory(path.parent) and lasting else "a crash soon after a write may lose it"


def make_directory(directory: Path, mode: int) -> None:
    """Make the directory and its parents with this mode, whatever the umask."""
    if not directory.exists():
        make_directory(directory.parent, mode)
        directory.mkdir(exist_ok=True)
        change_attributes(lambda: directory.chmod(mode))


def draft_of(path: Path) -> Path:
    """Return where a file is written before it takes its place: one fixed name, so the next run finds the remains."""
    return path.with_name(f".{path.name}.tmp")


def change_attributes(change: Callable[[], None]) -> None:
    """Change a file's owner or mode, unless its file system has no such thing or does not let us."""
    try:
        change()
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def _write_lastingly(path: Path, content: bytes, mode: int, prepare: Callable[[int], None] | None) -> bool:
    """Write the file; tell whether a crash would leave it whole."""
    # O_NOFOLLOW: where others may write the directory, a planted link must not send our bytes elsewhere.
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, mode), "wb") as file:  # noqa: PTH123 - Path cannot open a descriptor
        if prepare is not None:
            change_attributes(lambda: prepare(file.fileno()))
        file.write(content)
        file.flush()
        return _sync(file.fileno())  # or a crash may leave the new name with an empty file


def _write_in_place(path: Path, content: bytes, draft: Path, replacing: OSError) -> str:
    """Write the file that is there, emptied first: who reads meanwhile sees too little, never old and new mixed.

    The draft stays until the file is whole, for a person to use after a crash. Raises `replacing` if it cannot be
    written either.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        _remove(draft)
        raise replacing from None
    with open(descriptor, "wb") as file:  # noqa: PTH123 - Path cannot open a descriptor
        file.truncate()
        file.write(content)
        file.flush()
        _sync(descriptor)
    _remove(draft)
    why = "is a mount of its own" if replacing.errno == errno.EBUSY else f"cannot be replaced ({replacing.strerror})"
    return f"it {why} and is written in place: a crash amid a write leaves less than the whole"


def _remove(draft: Path) -> None:
    try:
        draft.unlink(missing_ok=True)
    except OSError as error:  # a directory that nobody may write holds no draft of ours
        if error.errno not in _IN_PLACE:
            raise


def _sync(descriptor: int) -> bool:
    """Write what the file has to the disk; tell whether its file system can do that."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return False
    return True


def _sync_directory(directory: Path) -> bool:
    """Write the directory to the disk; tell whether that worked. Whatever the reason: the file has its place by now."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError:
        return False
    return True
