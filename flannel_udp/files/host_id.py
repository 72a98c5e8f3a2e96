"""Who this host is, whatever its addresses: a random number that it keeps, so that it knows its own leases again.

Neither the address says it, which two hosts may have, nor /etc/machine-id, which clones of a machine share and
containers lack. A copy of the file is found out by the leases: each bears a number of its own, too.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from contextlib import suppress
from pathlib import Path

from flannel_udp.errors import FlannelError
from flannel_udp.files.atomic import draft_of

HOST_ID = "host-id"
"""The file's name: 32 hexadecimal digits, 128 random bits."""
_TEXT = re.compile(r"[0-9a-f]{32}")


def new_host_id() -> str:
    """Return a host id that nobody else has."""
    return secrets.token_hex(16)


def keep_host_id(folder: Path) -> str:
    """Return the host's id from its file in `folder`, which is made if it is not there or makes no sense.

    Raises `FlannelError` with one line if it can be neither read nor made.
    """
    path = folder / HOST_ID
    try:
        return _read(path) or _make(path)
    except OSError as error:
        raise FlannelError(f"the host's id cannot be kept in {path}: {error.strerror}") from None


def mark_of(host_id: str) -> int:
    """Return the 32 bits by which the host's leases are told from others', never 0."""
    return int.from_bytes(hashlib.sha256(host_id.encode()).digest()[:4], "big") or 1


def _read(path: Path) -> str | None:
    try:
        text = path.read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        return None
    return text if _TEXT.fullmatch(text) else None


def _make(path: Path) -> str:
    """Write a new id, unless another process of this host is faster."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    if path.exists():
        path.unlink()  # it makes no sense: a disk that was full, say
    draft = draft_of(path).with_suffix(f".{os.getpid()}")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:  # noqa: PTH123
            file.write(f"{new_host_id()}\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            path.hardlink_to(draft)
    finally:
        draft.unlink(missing_ok=True)
    made = _read(path)
    if made is None:
        raise FileNotFoundError(2, "it is gone at once")
    return made
