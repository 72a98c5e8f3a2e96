"""Replace a file whole: readers see the old one or the new one, never half of one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, content: bytes, mode: int, directory_mode: int) -> None:
    """Replace the file, which then has `mode` whatever the umask; a missing directory gets `directory_mode`.

    Otherwise as `replace_file`. Raises `OSError`.
    """
    _make_directory(path.parent, directory_mode)
    replace_file(path, content, mode, lambda descriptor: os.fchmod(descriptor, mode))


def replace_file(path: Path, content: bytes, mode: int = 0o644, prepare: Callable[[int], None] | None = None) -> None:
    """Replace the file by one with `mode`, less the umask; its directory must be there.

    `prepare` gets the new file's descriptor while it is empty and has another name, to change its owner or mode. A
    failed attempt leaves the old file and nothing else; a crash right after it leaves the new file with its whole
    content. Raises `OSError`.
    """
    draft = draft_of(path)
    try:
        _write_durably(draft, content, mode, prepare)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def draft_of(path: Path) -> Path:
    """Return where a file is written before it takes its place: one fixed name, so the next run finds the remains."""
    return path.with_name(f".{path.name}.tmp")


def _make_directory(directory: Path, mode: int) -> None:
    """Make the directory and its parents with this mode, whatever the umask."""
    if not directory.exists():
        _make_directory(directory.parent, mode)
        directory.mkdir(exist_ok=True)
        directory.chmod(mode)


def _write_durably(path: Path, content: bytes, mode: int, prepare: Callable[[int], None] | None) -> None:
    # O_NOFOLLOW: where others may write the directory, a planted link must not send our bytes elsewhere.
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, mode), "wb") as file:  # noqa: PTH123 - Path cannot open a descriptor
        if prepare is not None:
            prepare(file.fileno())
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # or a crash may leave the new name with an empty file


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
