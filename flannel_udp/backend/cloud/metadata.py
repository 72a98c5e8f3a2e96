"""A provider's metadata service: HTTP on a link-local address, which only this host can ask. Blocks."""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from urllib.parse import urlsplit

from flannel_udp.backend.cloud.provider import CloudError

TIMEOUT_S = 2.0
"""It is on this machine, so to speak: who has not answered by then never will."""
ANSWER_MAX_BYTES = 1 << 20
TOKEN_PATH = "/latest/api/token"  # noqa: S105 - a path
TOKEN_TTL_S = 60


class Metadata:
    """Asks one metadata service. No proxy is asked for it, whatever the environment says: it would ask another one."""

    def __init__(self, url: str, mark: tuple[str, str] | None = None) -> None:
        """`mark` is a header, and its value, by which each answer says that it comes from the metadata service."""
        self.url, self._mark = url.rstrip("/"), mark
        parts = urlsplit(self.url)
        self._host, self._port, self._base = parts.hostname or "", parts.port or 80, parts.path

    def ask(self, path: str, headers: Mapping[str, str], method: str = "GET") -> tuple[int, str]:
        """Return status and text. Raises `CloudError` where no answer comes."""
        connection = http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_S)
        try:
            connection.request(method, self._base + path, headers=dict(headers))
            response = connection.getresponse()
            if self._mark is not None and response.getheader(self._mark[0]) != self._mark[1]:
                raise CloudError(f"what answers at {self.url} is no metadata service: no {': '.join(self._mark)}")
            return response.status, response.read(ANSWER_MAX_BYTES).decode(errors="replace")
        except TimeoutError:
            raise CloudError(f"the metadata service at {self.url} does not answer within {TIMEOUT_S:g} s") from None
        except ValueError:  # its text quotes a header's value, the service's own token
            raise CloudError(f"the metadata service at {self.url} gave a token that is not one line") from None
        except (OSError, http.client.HTTPException) as error:
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise CloudError(f"no metadata service at {self.url}: {why}") from None
        finally:
            connection.close()


class TokenMetadata:
    """One conversation under a token, as services want one that are made like EC2's version 2."""

    def __init__(self, url: str, token_header: str, hint: str) -> None:
        """Ask for the token. `hint` is what to look at where there is no service. Raises `CloudError`."""
        self._metadata = Metadata(url)
        self.url = self._metadata.url
        try:
            status, token = self._metadata.ask(TOKEN_PATH, {f"{token_header}-ttl-seconds": str(TOKEN_TTL_S)}, "PUT")
        except CloudError as error:
            raise CloudError(f"{error}: {hint}") from None
        if status != 200:
            raise CloudError(f"the metadata service at {self.url} gives no token (status {status}): is it switched on?")
        self._headers = {token_header: token}

    def get(self, path: str) -> str:
        """Return what is there. Raises `CloudError`."""
        status, text = self._metadata.ask(path, self._headers)
        if status != 200:
            raise CloudError(f"the metadata service at {self.url} answers {path} with status {status}")
        return text.strip()

    def find(self, path: str) -> str:
        """Return what is there, nothing where that may be, as with the IPv4 addresses of an IPv6 interface."""
        status, text = self._metadata.ask(path, self._headers)
        return text.strip() if status == 200 else ""
