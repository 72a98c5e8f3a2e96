"""Bearer tokens: what can be one, and those that a file holds. What they are is told to nobody but the API server.

lightkube's own for a file hands on whatever is in there, so that HTTP's libraries refuse it, and quote it.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import TypeGuard

import httpx2
from lightkube.core.exceptions import ConfigError


def is_token(value: object) -> TypeGuard[str]:
    """Tell whether it fits into a header's field: what does not would be quoted by those who refuse it."""
    return isinstance(value, str) and bool(value) and value.isascii() and value.isprintable()


class TokenFile(httpx2.Auth):
    """Bears the token that a file holds, and reads it again once the server refuses it: kubelet replaces a pod's."""

    def __init__(self, file: str | os.PathLike[str]) -> None:
        self._file = file
        self._bearer = ""

    def auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        """See `httpx2.Auth`. Raises `ConfigError` if there is no token."""
        if self._bearer:
            request.headers["Authorization"] = self._bearer
            response = yield request
            if response.status_code != httpx2.codes.UNAUTHORIZED:
                return
        self._bearer = f"Bearer {self._read()}"
        request.headers["Authorization"] = self._bearer
        yield request

    def _read(self) -> str:
        try:
            token = Path(self._file).read_bytes().decode(errors="replace").strip()
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
            raise ConfigError(
                f"the token file {self._file} cannot be read: {getattr(error, 'strerror', None) or error}"
            ) from None
        if not is_token(token):
            raise ConfigError(f"the token file {self._file} holds no token: it must be one line of plain ASCII")
        return token
