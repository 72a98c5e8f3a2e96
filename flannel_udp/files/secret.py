"""A secret that a file holds, which may be replaced while we run."""

from __future__ import annotations

from pathlib import Path


class FileSecret(str):
    """The secret itself, empty before it can be read, and the file it comes from."""

    path: Path


def read_secret(path: Path) -> FileSecret:
    """Return the one line that the file holds, without its newline. Raises `ValueError`, which does not quote it."""
    try:
        text = path.read_text(encoding="utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise ValueError(f"cannot read {str(path)!r}: {getattr(error, 'strerror', None) or error}") from None
    if not text or not text.isprintable():
        raise ValueError(f"{path} holds no password: it must be one line")
    secret = FileSecret(text)
    secret.path = path
    return secret


def secret_in(path: Path) -> FileSecret:
    """Return the secret as far as the file has one by now: an empty one, which knows its file, where it has not."""
    try:
        return read_secret(path)
    except ValueError:
        later = FileSecret()
        later.path = path
        return later
