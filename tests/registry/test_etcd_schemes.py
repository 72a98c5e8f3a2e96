"""Which endpoints are spoken to over TLS: as for flanneld, those that say so, or say nothing beside certificates."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from flannel_udp.agent import run
from flannel_udp.errors import FlannelError, RegistryError
from flannel_udp.lab.etcd_server import EtcdServer, EtcdTls
from flannel_udp.options import EtcdOptions, KubeOptions, Options
from flannel_udp.registry.etcd import options as etcd_options
from tests.registry.certificates import make_authority, make_certificate
from tests.registry.test_etcd import Opened, opened

__all__ = ["opened"]

UNUSED = "--etcd-endpoints: http means plain text: certificates are given and not used: for TLS write https"


@pytest.fixture
def with_certificates(tmp_path: Path) -> EtcdOptions:
    """What a client of `tls_etcd` needs, but for its endpoint."""
    authority = make_authority(tmp_path, "authority")
    make_certificate(tmp_path, "server", authority, "IP:127.0.0.1")
    ours = make_certificate(tmp_path, "client", authority, "DNS:client")
    return EtcdOptions(cafile=authority.certfile, certfile=ours.certfile, keyfile=ours.keyfile, prefix="/schemes")


@pytest.fixture
def tls_etcd(etcd_directory: Path, tmp_path: Path, with_certificates: EtcdOptions) -> Iterator[EtcdServer]:
    assert with_certificates.cafile is not None
    tls = EtcdTls(tmp_path / "server.crt", tmp_path / "server.key", with_certificates.cafile)
    server = EtcdServer(etcd_directory, tls=tls)
    server.start()
    try:
        yield server
    finally:
        server.stop()


async def test_http_is_plain_text_whatever_certificates_are_given(
    opened: Opened, etcd: EtcdServer, with_certificates: EtcdOptions
) -> None:
    options = replace(with_certificates, endpoints=(etcd.endpoint,))
    assert (await opened(options).list()).entries == {}


async def test_an_endpoint_without_a_scheme_is_tls_where_certificates_are_given(
    opened: Opened, tls_etcd: EtcdServer, with_certificates: EtcdOptions
) -> None:
    bare = tls_etcd.endpoint.removeprefix("https://")
    assert (await opened(replace(with_certificates, endpoints=(bare,))).list()).entries == {}
    with pytest.raises(RegistryError, match=f"no etcd endpoint answers: http://{bare} .*is it https"):
        await opened(EtcdOptions(endpoints=(bare,))).list()


async def test_without_an_authority_of_its_own_those_count_that_the_machine_trusts(
    opened: Opened, tls_etcd: EtcdServer, with_certificates: EtcdOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for flanneld: a company's authority is often there, and in no list of a library's."""
    options = replace(with_certificates, cafile=None, endpoints=(tls_etcd.endpoint,))
    monkeypatch.delenv("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(with_certificates.cafile))
    assert (await opened(options).list()).entries == {}
    monkeypatch.delenv("SSL_CERT_FILE")
    monkeypatch.setattr(etcd_options, "MACHINES_AUTHORITIES", ("/nonexistent", str(with_certificates.cafile)))
    assert (await opened(options).list()).entries == {}
    monkeypatch.setattr(etcd_options, "MACHINES_AUTHORITIES", ())
    with pytest.raises(RegistryError, match="its certificate is not trusted: check --etcd-cafile"):
        await opened(options).list()


async def test_an_endpoint_without_a_scheme_is_plain_text_without_certificates(
    opened: Opened, etcd: EtcdServer
) -> None:
    options = EtcdOptions(endpoints=(etcd.endpoint.removeprefix("http://"),), prefix="/schemes")
    assert (await opened(options).list()).entries == {}


@pytest.mark.parametrize(
    ("options", "is_warned"),
    [
        (Options(etcd=EtcdOptions(endpoints=("http://a:1",), cafile=Path("ca.pem"))), True),
        (Options(etcd=EtcdOptions(endpoints=("http://a:1",), certfile=Path("c"), keyfile=Path("k"))), True),
        (Options(etcd=EtcdOptions(endpoints=("a:1",), cafile=Path("ca.pem"))), False),
        (Options(etcd=EtcdOptions(endpoints=("https://a:1",), cafile=Path("ca.pem"))), False),
        (Options(etcd=EtcdOptions(endpoints=("http://a:1",))), False),
        (Options(registry="file:/x", etcd=EtcdOptions(cafile=Path("ca.pem"))), False),
        (Options(kube=KubeOptions(subnet_mgr=True), etcd=EtcdOptions(cafile=Path("ca.pem"))), False),
    ],
)
def test_certificates_that_are_not_used_are_one_warning_at_the_start(
    options: Options, is_warned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> None:
        raise FlannelError("enough is seen")

    monkeypatch.setattr(run, "check_privileges", refuse)
    with caplog.at_level(logging.WARNING), pytest.raises(FlannelError, match="enough is seen"):
        run._live(options)
    assert caplog.messages == [UNUSED] * is_warned
