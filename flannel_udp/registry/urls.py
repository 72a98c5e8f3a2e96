"""The URLs at which a registry's servers are reached. Pure, and light: the command line checks its flags with this."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

ETCD_PORT = 2379


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One etcd server: `url` for messages, `target` for gRPC."""

    url: str
    target: str

    @property
    def https(self) -> bool:
        """Whether it is spoken to over TLS."""
        return self.url.startswith("https:")


def split_url(url: str) -> SplitResult:
    """Return the parts of an http or https URL with a host. Raises `ValueError` with the reason.

    The reason never quotes a user or a password.
    """
    shown = url.rpartition("@")[2]
    try:
        parts = urlsplit(url)
        port_ok = parts.port != 0
    except ValueError:  # a port that is no number below 65536, an unclosed bracket: its text may quote a password
        raise ValueError(f"{shown!r}: the port must be a number below 65536, an IPv6 address in brackets") from None
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"{shown!r}: the scheme must be http or https")
    if not parts.hostname or not port_ok or re.search(r"\s", url):
        raise ValueError(f"{shown!r} is no URL such as http://192.0.2.1:2379")
    return parts


def without_user(url: str) -> str:
    """Return the URL, which `split_url` takes, as it may be shown: without a user and a password. Raises as that."""
    parts = split_url(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def parse_endpoint(text: str) -> Endpoint:
    """Read the URL of an etcd server; a bare ``host:port`` counts as http unless `EtcdOptions.urls` has said more.

    Raises `ValueError` with the reason, which never quotes a user or a password.
    """
    text = text.strip()
    shown = text.rpartition("@")[2]
    parts = split_url(text if "://" in text else f"http://{text}")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a URL holds a user; use --etcd-username and --etcd-password")
    if parts.netloc.endswith(":"):
        raise ValueError(f"{shown!r}: there is no port after the colon")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(f"{shown!r}: nothing may follow the port")
    hostname = parts.hostname or ""
    host = f"[{hostname}]" if ":" in hostname else hostname
    port = parts.port or ETCD_PORT
    # gRPC's dns resolver takes addresses as well as names, and checks the server's certificate against this host.
    return Endpoint(f"{parts.scheme}://{host}:{port}", f"dns:///{host}:{port}")
