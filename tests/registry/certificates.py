"""Certificates for the TLS tests, made with openssl."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.patience import PATIENCE_S

_AUTHORITY = """\
[req]
distinguished_name = name
x509_extensions = authority
[name]
[authority]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
"""
_LEAF = """\
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
subjectKeyIdentifier = hash
"""
P256 = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    certfile: Path
    keyfile: Path


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=PATIENCE_S)


def make_authority(directory: Path, name: str) -> Pair:
    """Make a certificate authority as RFC 5280 section 4.2.1 wants it: Python 3.13 and later accept no other."""
    pair = Pair(directory / f"{name}.crt", directory / f"{name}.key")
    settings = directory / f"{name}.cnf"
    settings.write_text(_AUTHORITY)  # not the system's: extensions of two places add up
    _openssl(
        "req", "-x509", *P256, "-keyout", pair.keyfile, "-out", pair.certfile, "-days", "2", "-subj", f"/CN={name}",
        "-config", settings,
    )  # fmt: skip
    return pair


def make_intermediate(directory: Path, name: str, root: Pair) -> Pair:
    """Make an authority that another one vouches for."""
    pair = Pair(directory / f"{name}.crt", directory / f"{name}.key")
    request, settings = directory / f"{name}.csr", directory / f"{name}.cnf"
    settings.write_text(f"{_AUTHORITY}authorityKeyIdentifier = keyid\n")
    _openssl("req", *P256, "-keyout", pair.keyfile, "-out", request, "-subj", f"/CN={name}")
    _openssl(
        "x509", "-req", "-in", request, "-CA", root.certfile, "-CAkey", root.keyfile, "-CAcreateserial",
        "-days", "2", "-extfile", settings, "-extensions", "authority", "-out", pair.certfile,
    )  # fmt: skip
    return pair


def make_certificate(
    directory: Path,
    name: str,
    authority: Pair,
    alternative_names: str,
    *,
    names_authority: bool = True,
    key: Sequence[str] = P256,
) -> Pair:
    """Make a certificate for `alternative_names`, such as ``IP:127.0.0.1,DNS:localhost``, and its `key`.

    RFC 5280 wants it to name its authority's key; clusters have many without.
    """
    pair = Pair(directory / f"{name}.crt", directory / f"{name}.key")
    request, extensions = directory / f"{name}.csr", directory / f"{name}.ext"
    key_identifier = "keyid" if names_authority else "none"
    extensions.write_text(_LEAF + f"authorityKeyIdentifier={key_identifier}\nsubjectAltName={alternative_names}\n")
    _openssl("req", *key, "-keyout", pair.keyfile, "-out", request, "-subj", f"/CN={name}")
    _openssl(
        "x509", "-req", "-in", request, "-CA", authority.certfile, "-CAkey", authority.keyfile, "-CAcreateserial",
        "-days", "2", "-extfile", extensions, "-out", pair.certfile,
    )  # fmt: skip
    return pair
