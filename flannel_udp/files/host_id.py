"""Who this host is, whatever its addresses: a random number that it keeps, so that it knows its own leases again.

Neither the address says it, which two hosts may have, nor /etc/machine-id, which clones of a machine share and
containers lack. A copy of the file is found out by the leases: each bears a number of its own, too.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
from pathlib import Path

from flannel_udp.errors import FlannelError

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
    """Write a new id, unless another process of this host was faster: the file's lock says who may (flock(2)).

    It is written in place: a file taken away, even one that makes no sense, might be one that was just made.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        made = _read(path)
        if made is None:
            made = new_host_id()
            file.truncate()
            file.write(f"{made}\n".encode())
            file.flush()
            os.fsync(file.fileno())
    return made
