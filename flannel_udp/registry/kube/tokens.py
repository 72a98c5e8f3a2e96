"""Bearer tokens: what can be one, and those that a file holds. What they are is told to nobody but the API server.

lightkube's own for a file hands on whatever is in there, so that HTTP's libraries refuse it, and quote it.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TypeGuard

import httpx2
from lightkube.core.exceptions import ConfigError


def is_token(value: object) -> TypeGuard[str]:
    """Tell whether it fits into a header's field: what does not would be quoted by those who refuse it."""
    return isinstance(value, str) and bool(value) and value.isascii() and value.isprintable()


class Bearer(httpx2.Auth, ABC):
    """Bears a token, and asks for another one once the server refuses it."""

    _bearer = ""

    @abstractmethod
    async def _token(self) -> str:
        """Return a token as it is now. Raises `ConfigError` if there is none."""

    async def async_auth_flow(self, request: httpx2.Request) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        """See `httpx2.Auth`. Raises `ConfigError` if there is no token."""
        if self._bearer:
            request.headers["Authorization"] = self._bearer
            response = yield request
            if response.status_code != httpx2.codes.UNAUTHORIZED:
                return
        self._bearer = f"Bearer {await self._token()}"
        request.headers["Authorization"] = self._bearer
        yield request


class TokenFile(Bearer):
    """Bears the token that a file holds: kubelet replaces a pod's."""

    def __init__(self, file: str | os.PathLike[str]) -> None:
        self._file = file

    async def _token(self) -> str:
        try:
            token = Path(self._file).read_bytes().decode(errors="replace").strip()
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
            raise ConfigError(
                f"the token file {self._file} cannot be read: {getattr(error, 'strerror', None) or error}"
            ) from None
        if not is_token(token):
            raise ConfigError(f"the token file {self._file} holds no token: it must be one line of plain ASCII")
        return token
