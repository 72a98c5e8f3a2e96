"""Certificates and passwords are replaced while we run, one file after the other: used as soon as they fit."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from flannel_udp.errors import RegistryDenied, RegistryError
from flannel_udp.files.secret import read_secret
from flannel_udp.lab.etcd_server import EtcdServer, EtcdTls
from flannel_udp.model import LEASE_TTL_S
from flannel_udp.options import EtcdOptions
from tests.registry.certificates import Pair, make_authority, make_certificate
from tests.registry.support import PASSWORD, etcdctl, said, watching
from tests.registry.test_etcd import KEY, OTHER_VALUE, VALUE, Opened, guarded_etcd, opened

__all__ = ["guarded_etcd", "opened"]


class Pki:
    """An authority with a certificate for a server and one for us."""

    def __init__(self, directory: Path, name: str) -> None:
        self.authority = make_authority(directory, f"{name}-ca")
        self.server = make_certificate(directory, f"{name}-server", self.authority, "IP:127.0.0.1")
        self.ours = make_certificate(directory, f"{name}-ours", self.authority, "DNS:client")

    @property
    def tls(self) -> EtcdTls:
        return EtcdTls(self.server.certfile, self.server.keyfile, self.authority.certfile)


async def test_certificates_that_are_replaced_one_by_one_are_used_once_they_fit(
    opened: Opened, etcd_directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "flannel_udp")
    old, new = Pki(tmp_path, "old"), Pki(tmp_path, "new")
    ca, pair = tmp_path / "ca.crt", Pair(tmp_path / "our.crt", tmp_path / "our.key")
    shutil.copy(old.authority.certfile, ca)
    shutil.copy(old.ours.certfile, pair.certfile)
    shutil.copy(old.ours.keyfile, pair.keyfile)
    server = EtcdServer(etcd_directory, tls=old.tls)
    server.start()
    port = int(server.endpoint.rpartition(":")[2])
    registry = opened(
        EtcdOptions(endpoints=(server.endpoint,), cafile=ca, certfile=pair.certfile, keyfile=pair.keyfile)
    )
    entry = await registry.create(KEY, VALUE, LEASE_TTL_S)
    server.stop()
    server = EtcdServer(etcd_directory, tls=new.tls, client_port=port)
    server.start()
    try:
        for _ in range(2):
            with pytest.raises(RegistryDenied, match="its certificate is not trusted"):
                await registry.list()
        shutil.copy(new.authority.certfile, ca)
        with pytest.raises(RegistryDenied, match="it refuses our certificate"):
            await registry.list()
        shutil.copy(new.ours.certfile, pair.certfile)
        for _ in range(2):
            with pytest.raises(RegistryError):
                await registry.list()
        half = [message for message in caplog.messages if "not a certificate and its unencrypted key" in message]
        assert len(half) == 1
        assert half[0].endswith("going on with what was read before, until it is put right")
        shutil.copy(new.ours.keyfile, pair.keyfile)
        assert (await registry.list()).entries == {KEY: entry}
        assert await registry.renew(entry, VALUE, LEASE_TTL_S) == entry
    finally:
        server.stop()


async def test_a_watch_lives_on_while_its_certificates_are_replaced(
    opened: Opened, etcd_directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "flannel_udp")
    pki = Pki(tmp_path, "one")
    other = make_certificate(tmp_path, "other", pki.authority, "DNS:client")
    server = EtcdServer(etcd_directory, tls=pki.tls)
    server.start()
    options = EtcdOptions(
        endpoints=(server.endpoint,),
        cafile=pki.authority.certfile,
        certfile=pki.ours.certfile,
        keyfile=pki.ours.keyfile,
    )
    try:
        registry = opened(options)
        entry = await registry.create(KEY, VALUE, LEASE_TTL_S)
        async with watching(registry) as seen:
            await seen.snapshot()
            shutil.copy(other.certfile, pki.ours.certfile)
            shutil.copy(other.keyfile, pki.ours.keyfile)
            await registry.renew(entry, OTHER_VALUE, LEASE_TTL_S)
            await seen.entry(KEY, OTHER_VALUE)
        assert caplog.messages == ["etcd: the certificates or the password were replaced: using the new ones"]
    finally:
        server.stop()


async def test_a_password_that_is_replaced_is_read_again(
    opened: Opened, guarded_etcd: EtcdServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    file = tmp_path / "password"
    file.write_text(f"{PASSWORD}\n")
    registry = opened(EtcdOptions(endpoints=(guarded_etcd.endpoint,), username="flannel", password=read_secret(file)))
    await registry.list()
    root = ("--user", f"root:{PASSWORD}")
    for command in (("delete", "flannel"), ("add", "flannel:another"), ("grant-role", "flannel", "flannel")):
        etcdctl(guarded_etcd.endpoint, *root, "user", *command)
    with pytest.raises(RegistryDenied, match="invalid user ID or password"):
        await registry.list()
    file.write_text("")  # half written
    with pytest.raises(RegistryDenied, match="invalid user ID or password"):
        await registry.list()
    await said(caplog, f"--etcd-password-file: {file} holds no password")
    file.write_text("another\n")
    await registry.list()
    assert "another" not in caplog.text
