"""Who may ask the page's server: whoever has the token, from a page of ours, at an address of ours. Pure."""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass, field

ADDRESS = "127.0.0.1"
"""Nobody but this machine."""
_NAMES = (ADDRESS, "localhost")
"""What a browser of this machine may call it; a name of somebody else's that leads here (DNS rebinding) is none."""
_PORT_OF_HTTP = 80  # which browsers leave out
_CHANGING = ("POST",)

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",  # the address has the token in it
    "X-Content-Type-Options": "nosniff",
}
"""Of every answer."""


@dataclass(frozen=True, slots=True)
class Gate:
    """Knows the token, which is the first part of every path, so that all that the page names has it."""

    port: int
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{ADDRESS}:{self.port}/{self.token}/"

    def refusal(self, method: str, path: str, host: str | None, origin: str | None) -> str | None:
        """Return why a request is refused, in one line; ``None`` where it may be answered.

        A browser tells with every POST, and with what another site asks for, which page it comes from.
        """
        port = "" if self.port == _PORT_OF_HTTP else f":{self.port}"
        if host not in {f"{name}{port}" for name in _NAMES}:
            return "this page is asked for by another name than this machine's own"
        first = path.removeprefix("/").partition("/")[0]  # of `OPTIONS *` a star
        if not hmac.compare_digest(first.encode(), self.token.encode()):
            return "the token in the address is wrong: open the address that `flannel-udp lab view` has printed"
        if origin is None:
            return "what changes something is asked for by the page only" if method in _CHANGING else None
        if origin != f"http://{host}":
            return f"a page of {origin[:100]} asks, which is not this one"
        return None
