"""An etcd whose tokens are signed (JWT) names users and roles as they were then: older ones are refused."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from flannel_udp.lab.etcd_server import EtcdServer
from flannel_udp.model import LEASE_TTL_S
from flannel_udp.options import EtcdOptions
from flannel_udp.registry.etcd.faults import is_stale_token
from tests.registry.support import PASSWORD, etcdctl, guarded, watching
from tests.registry.test_etcd import KEY, OTHER_VALUE, VALUE, Opened, opened
from tests.support.patience import PATIENCE_S

__all__ = ["opened"]


@pytest.fixture
def signing_etcd(etcd_directory: Path, tmp_path: Path) -> Iterator[EtcdServer]:
    """An etcd whose tokens live for as long as the test does, unless it refuses them for another reason."""
    key, public = tmp_path / "key.pem", tmp_path / "public.pem"
    for command in (("genrsa", "-out", key, "2048"), ("rsa", "-in", key, "-pubout", "-out", public)):
        subprocess.run(["openssl", *command], check=True, capture_output=True, timeout=PATIENCE_S)
    tokens = f"--auth-token=jwt,pub-key={public},priv-key={key},sign-method=RS256,ttl=1h"
    with guarded(etcd_directory, tokens) as server:
        yield server


async def test_a_signed_token_that_is_older_than_a_change_of_users_or_roles_is_replaced(
    opened: Opened, signing_etcd: EtcdServer
) -> None:
    root = ("--user", f"root:{PASSWORD}")
    registry = opened(EtcdOptions(endpoints=(signing_etcd.endpoint,), username="flannel", password=PASSWORD))
    entry = await registry.create(KEY, VALUE, LEASE_TTL_S)
    async with watching(registry) as seen:
        await seen.snapshot()
        etcdctl(signing_etcd.endpoint, *root, "user", "add", "somebody:else")
        entry = await registry.renew(entry, OTHER_VALUE, LEASE_TTL_S)
        assert (await seen.change()).entries == {KEY: entry}
    etcdctl(signing_etcd.endpoint, *root, "role", "add", "another")
    assert (await registry.list()).entries == {KEY: entry}
    etcdctl(signing_etcd.endpoint, *root, "user", "delete", "somebody")
    assert await registry.time_left_s(entry)


@pytest.mark.parametrize(
    ("code", "details"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, "etcdserver: invalid auth token"),
        (grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: user name is empty"),
        (grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: revision of auth store is old"),
        (grpc.StatusCode.INVALID_ARGUMENT, "auth: revision in header is old"),
        (grpc.StatusCode.UNKNOWN, "auth: revision in header is old"),
    ],
)
def test_whatever_words_etcd_has_for_a_token_that_is_no_longer_good_it_is_replaced(
    code: grpc.StatusCode, details: str
) -> None:
    error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=details)
    assert is_stale_token(error)
