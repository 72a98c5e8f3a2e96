"""The etcd flags, checked: URLs and certificate files become what gRPC takes. Every fault is a `UsageError`."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import grpc

from flannel_udp.errors import UsageError
from flannel_udp.options import EtcdOptions

DEFAULT_PORT = 2379


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One etcd server: `url` for messages, `target` for gRPC."""

    url: str
    target: str


def parse_endpoints(urls: tuple[str, ...]) -> tuple[list[Endpoint], bool]:
    """Return the endpoints and whether their scheme is https. Raises `UsageError`."""
    schemes = set()
    endpoints = []
    for url in urls:
        scheme, endpoint = _parse_endpoint(url)
        schemes.add(scheme)
        endpoints.append(endpoint)
    if not endpoints:
        raise UsageError("--etcd-endpoints: give at least one URL, such as http://127.0.0.1:2379")
    if len(schemes) > 1:
        raise UsageError("--etcd-endpoints: http and https are mixed; give all endpoints the same scheme")
    return endpoints, schemes == {"https"}


def _parse_endpoint(url: str) -> tuple[str, Endpoint]:
    """Split one URL into its scheme and the endpoint; a bare ``host:port`` counts as http, as it does for flanneld."""
    text = url.strip()
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        port = parts.port or DEFAULT_PORT
    except ValueError as error:  # a port that is no number, an unclosed bracket
        raise UsageError(f"--etcd-endpoints: {_without_user(text)!r}: {error}") from None
    if parts.username is not None or parts.password is not None:
        raise UsageError("--etcd-endpoints: a URL holds a user; use --etcd-username and --etcd-password")
    if parts.scheme not in {"http", "https"}:
        raise UsageError(f"--etcd-endpoints: {text!r}: the scheme must be http or https")
    if not parts.hostname or any(blank in text for blank in " \t\r\n"):
        raise UsageError(f"--etcd-endpoints: {text!r} is no URL such as http://192.0.2.1:2379")
    if parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise UsageError(f"--etcd-endpoints: {text!r}: nothing may follow the port")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    # gRPC's dns resolver takes addresses as well as names, and checks the server's certificate against this host.
    return parts.scheme, Endpoint(f"{parts.scheme}://{host}:{port}", f"dns:///{host}:{port}")


def _without_user(url: str) -> str:
    """Cut a user and password off a URL that could not be taken apart."""
    return url.rpartition("@")[2]


def open_credentials(options: EtcdOptions, https: bool) -> grpc.ChannelCredentials | None:
    """Read the certificate files; ``None`` means plain text. Raises `UsageError` naming the flag and the file."""
    if not https and options.cafile is None and options.certfile is None and options.keyfile is None:
        return None
    if (options.certfile is None) != (options.keyfile is None):
        raise UsageError("--etcd-certfile and --etcd-keyfile belong together: give both or neither")
    ca = _read("--etcd-cafile", options.cafile)
    certificate = _read("--etcd-certfile", options.certfile)
    key = _read("--etcd-keyfile", options.keyfile)
    # gRPC notices a bad file only in the handshake, and then says little: let OpenSSL look at them first.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if options.cafile is not None:
        try:
            context.load_verify_locations(options.cafile)
        except ssl.SSLError:
            raise UsageError(f"--etcd-cafile {options.cafile}: holds no certificate in PEM form") from None
    if options.certfile is not None:
        try:
            # The empty password keeps OpenSSL from asking a terminal for one.
            context.load_cert_chain(options.certfile, options.keyfile, password="")
        except ssl.SSLError:
            raise UsageError(
                f"--etcd-certfile {options.certfile} and --etcd-keyfile {options.keyfile}: "
                "not a certificate and its unencrypted key in PEM form"
            ) from None
    return grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=certificate)


def _read(flag: str, path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{flag} {path}: {error.strerror}") from None
