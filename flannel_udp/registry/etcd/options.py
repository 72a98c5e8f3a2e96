"""The etcd flags, checked: URLs and files become what gRPC takes; raises `UsageError`, `UnusableFile`."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from flannel_udp.backoff.said_once import SaidOnce
from flannel_udp.errors import UnusableFile, UsageError
from flannel_udp.files.secret import FileSecret, read_secret
from flannel_udp.options import EtcdOptions
from flannel_udp.registry.urls import Endpoint, parse_endpoint

logger = logging.getLogger(__name__)

MACHINES_AUTHORITIES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
"""Where distributions keep the certificates of those that the machine trusts: the first file counts, as for Go."""


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


@dataclass(frozen=True, slots=True)
class Secrets:
    """What the files hold with which we and etcd know each other, as it was read together."""

    ca: bytes | None
    certificate: bytes | None
    key: bytes | None = field(repr=False)
    password: str = field(repr=False)
    tls: bool

    @property
    def credentials(self) -> grpc.ChannelCredentials | None:
        """What gRPC takes, ``None`` for plain text."""
        if not self.tls:
            return None
        return grpc.ssl_channel_credentials(
            root_certificates=self.ca, private_key=self.key, certificate_chain=self.certificate
        )


def read_secrets(options: EtcdOptions, https: bool) -> Secrets:
    """Read the certificate files and the password's. Raises `UsageError`, for a file `UnusableFile`, naming both."""
    if (options.certfile is None) != (options.keyfile is None):
        raise UsageError("--etcd-certfile and --etcd-keyfile belong together: give both or neither")
    password = options.password
    if isinstance(password, FileSecret):
        try:
            password = read_secret(password.path)
        except ValueError as error:
            raise UnusableFile(f"--etcd-password-file: {error}") from None
    return Secrets(
        _machines_authorities() if https and options.cafile is None else _read("--etcd-cafile", options.cafile),
        _read("--etcd-certfile", options.certfile),
        _read("--etcd-keyfile", options.keyfile),
        str(password),
        https,
    )


def check_certificates(options: EtcdOptions) -> None:
    """Raise `UnusableFile` for files that hold no certificate, or a key that is another one's.

    gRPC notices a bad file only in the handshake, and then says little: let OpenSSL look at them first.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if options.cafile is not None:
        try:
            context.load_verify_locations(options.cafile)
        except (OSError, ssl.SSLError):
            raise UnusableFile(f"--etcd-cafile {options.cafile}: holds no certificate in PEM form") from None
    if options.certfile is not None:
        try:
            # The empty password keeps OpenSSL from asking a terminal for one.
            context.load_cert_chain(options.certfile, options.keyfile, password="")
        except (OSError, ssl.SSLError):
            raise UnusableFile(
                f"--etcd-certfile {options.certfile} and --etcd-keyfile {options.keyfile}: "
                "not a certificate and its unencrypted key in PEM form"
            ) from None


def open_credentials(options: EtcdOptions, https: bool) -> grpc.ChannelCredentials | None:
    """Return what gRPC takes, ``None`` for plain text. Raises as `read_secrets` does."""
    secrets = read_secrets(options, https)
    check_certificates(options)
    return secrets.credentials


class SecretFiles:
    """The files behind `Secrets`, which may be replaced at any time, one after the other.

    Raises as `read_secrets` does for what is wrong with them at the start.
    """

    def __init__(self, options: EtcdOptions, https: bool) -> None:
        self._options = options
        self._https = https
        self._has_files = any((options.cafile, options.certfile, isinstance(options.password, FileSecret)))
        self._faults = SaidOnce()
        self.secrets = read_secrets(options, https)
        check_certificates(options)

    async def look(self) -> bool:
        """Read them again; tell whether `secrets` are others now.

        What does not belong together, because only one half is replaced yet, is said once and waited for.
        """
        if not self._has_files:
            return False
        try:
            return await asyncio.to_thread(self._look)
        except UnusableFile as error:
            if self._faults.failed(str(error)):
                logger.warning("%s; going on with what was read before, until it is put right", error)
            return False

    def _look(self) -> bool:
        fresh = read_secrets(self._options, self._https)
        if fresh == self.secrets:
            self._faults.worked()
            return False
        check_certificates(self._options)
        if read_secrets(self._options, self._https) != fresh:
            return False  # replaced while they were looked at: next time
        self.secrets = fresh
        self._faults.worked()
        logger.info("etcd: the certificates or the password were replaced: using the new ones")
        return True


def _read(flag: str, path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnusableFile(f"{flag} {path}: {error.strerror}") from None


def _machines_authorities() -> bytes | None:
    """Return whom the machine trusts, unless gRPC is told; ``None`` for gRPC's own list, which has nobody of ours."""
    if os.environ.get("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"):
        return None
    named = os.environ.get("SSL_CERT_FILE")
    for file in (named,) if named else MACHINES_AUTHORITIES:
        with suppress(OSError):
            return Path(file).read_bytes()
    return None
