"""The etcd flags, checked: URLs and certificate files become what gRPC takes. Every fault is a `UsageError`."""

from __future__ import annotations

import ssl
from pathlib import Path

import grpc

from flannel_udp.errors import UsageError
from flannel_udp.options import EtcdOptions
from flannel_udp.registry.urls import Endpoint, parse_endpoint


def parse_endpoints(urls: tuple[str, ...]) -> tuple[list[Endpoint], bool]:
    """Return the endpoints and whether their scheme is https. Raises `UsageError`."""
    try:
        endpoints = [parse_endpoint(url) for url in urls]
    except ValueError as error:
        raise UsageError(f"--etcd-endpoints: {error}") from None
    schemes = {endpoint.https for endpoint in endpoints}
    if not schemes:
        raise UsageError("--etcd-endpoints: give at least one URL, such as http://127.0.0.1:2379")
    if len(schemes) > 1:
        raise UsageError("--etcd-endpoints: http and https are mixed; give all endpoints the same scheme")
    return endpoints, schemes == {True}


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
