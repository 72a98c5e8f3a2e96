"""A provider's metadata service: HTTP on a link-local address, which only this host can ask. Blocks."""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from urllib.parse import urlsplit

from flannel_udp.backend.cloud.provider import CloudError

TIMEOUT_S = 2.0
"""It is on this machine, so to speak: who has not answered by then never will."""
ANSWER_MAX_BYTES = 1 << 20


class Metadata:
    """Asks one metadata service. No proxy is asked for it, whatever the environment says: it would ask another one."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        parts = urlsplit(self.url)
        self._host, self._port, self._base = parts.hostname or "", parts.port or 80, parts.path

    def ask(self, path: str, headers: Mapping[str, str], method: str = "GET") -> tuple[int, str]:
        """Return status and text. Raises `CloudError` where no answer comes."""
        connection = http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_S)
        try:
            connection.request(method, self._base + path, headers=dict(headers))
            response = connection.getresponse()
            return response.status, response.read(ANSWER_MAX_BYTES).decode(errors="replace")
        except TimeoutError:
            raise CloudError(f"the metadata service at {self.url} does not answer within {TIMEOUT_S:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise CloudError(f"no metadata service at {self.url}: {why}") from None
        finally:
            connection.close()
