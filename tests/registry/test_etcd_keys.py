"""Which keys etcd's certificate may have: gRPC's TLS (BoringSSL) takes fewer than Go's, of which flanneld is made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import grpc
import grpc.aio
import pytest

from flannel_udp.errors import RegistryDenied
from flannel_udp.lab.etcd_server import EtcdServer, EtcdTls
from flannel_udp.options import EtcdOptions
from flannel_udp.registry.etcd.faults import reason_of
from tests.registry.certificates import P256, make_authority, make_certificate
from tests.registry.test_etcd import Opened, opened

__all__ = ["opened"]

ED25519 = ("-newkey", "ed25519", "-nodes")
RSA = ("-newkey", "rsa:2048", "-nodes")
REFUSED = "it has no certificate that gRPC takes: RSA, ECDSA P-256 or P-384; not Ed25519 or P-521"


def ecdsa(curve: str) -> tuple[str, ...]:
    return ("-newkey", "ec", "-pkeyopt", f"ec_paramgen_curve:{curve}", "-nodes")


async def ask(
    opened: Opened, etcd_directory: Path, tmp_path: Path, server: Sequence[str], client: Sequence[str]
) -> None:
    """List what an etcd has whose certificate has a key of the first kind, with one of our own of the second."""
    authority = make_authority(tmp_path, "authority")
    theirs = make_certificate(tmp_path, "server", authority, "IP:127.0.0.1", key=server)
    ours = make_certificate(tmp_path, "client", authority, "DNS:client", key=client)
    etcd = EtcdServer(etcd_directory, tls=EtcdTls(theirs.certfile, theirs.keyfile, authority.certfile))
    etcd.start()
    try:
        options = EtcdOptions(
            endpoints=(etcd.endpoint,), cafile=authority.certfile, certfile=ours.certfile, keyfile=ours.keyfile
        )
        assert (await opened(options).list()).entries == {}
    finally:
        etcd.stop()


@pytest.mark.parametrize("key", [ED25519, ecdsa("P-521")], ids=["Ed25519", "P-521"])
async def test_a_certificate_whose_key_grpc_does_not_take_is_named(
    opened: Opened, etcd_directory: Path, tmp_path: Path, key: Sequence[str]
) -> None:
    with pytest.raises(RegistryDenied) as caught:
        await ask(opened, etcd_directory, tmp_path, server=key, client=P256)
    assert str(caught.value).endswith(f" ({REFUSED})")


@pytest.mark.parametrize("key", [RSA, ecdsa("P-384")], ids=["RSA", "P-384"])
async def test_others_are_taken(opened: Opened, etcd_directory: Path, tmp_path: Path, key: Sequence[str]) -> None:
    await ask(opened, etcd_directory, tmp_path, server=key, client=P256)


async def test_our_own_may_have_any(opened: Opened, etcd_directory: Path, tmp_path: Path) -> None:
    await ask(opened, etcd_directory, tmp_path, server=P256, client=ED25519)


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        ("", REFUSED),  # grpcio 1.60
        (": Invalid certificate verification context: OK", REFUSED),  # grpcio 1.85
        (": OK", "it refuses our certificate: check --etcd-certfile and --etcd-keyfile"),
    ],
)
def test_the_alert_is_another_one_once_its_certificate_was_taken(after: str, reason: str) -> None:
    """A server of OpenSSL (a proxy, say) with TLS 1.2 that wants a certificate of ours and gets none says the same."""
    alert = "SSL_ERROR_SSL: error:10000410:SSL routines:OPENSSL_internal:SSLV3_ALERT_HANDSHAKE_FAILURE"
    nothing = grpc.aio.Metadata()
    error = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing, f"Ssl handshake failed: {alert}{after}")
    assert reason_of(error) == reason
