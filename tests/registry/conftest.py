"""The registry tests run against a real etcd and a real file."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
import uvloop

from flannel_udp.lab.etcd_server import EtcdServer
from flannel_udp.options import EtcdOptions, KubeOptions
from flannel_udp.registry.etcd import connections
from flannel_udp.registry.kube.client import KubeClient
from flannel_udp.registry.kube.options import KubeFiles
from tests.support.kube_clients import Opened

_numbers = itertools.count(1)


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run the shared suite on both kinds of loop, everything else on the agent's own kind."""
    if item.path.name == "test_registry_suite.py":
        return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session", autouse=True)
def grpc_stays() -> Iterator[None]:
    """grpc opens a few descriptors with a process's first call, and some faults keep it from closing them ever.

    Here it does so before any test: what is open later is a test's own.
    """

    async def call() -> None:
        grpc.aio.init_grpc_aio()
        async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
            ask: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/nobody/answers")
            with suppress(grpc.aio.AioRpcError):
                await ask(b"")

    loop = asyncio.new_event_loop()  # asyncio.run would also unset the thread's own
    loop.run_until_complete(call())
    loop.close()
    yield
    grpc.aio.shutdown_grpc_aio()


@pytest.fixture(autouse=True)
def patient_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection to etcd may take as long as the call that wants it: on a busy machine 3 s are not for ever."""
    attempt = "grpc.min_reconnect_backoff_ms"
    options = [(name, 60_000 if name == attempt else value) for name, value in connections.CHANNEL_OPTIONS]
    monkeypatch.setattr(connections, "CHANNEL_OPTIONS", options)


@pytest.fixture(scope="session")
def needs_etcd() -> None:
    if shutil.which("etcd") is None or shutil.which("etcdctl") is None:
        pytest.skip("etcd or etcdctl is not installed (apt-get install etcd-server etcd-client)")


@pytest.fixture(scope="session")
def etcd(needs_etcd: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """One etcd for all tests that do not harm it."""
    directory = tmp_path_factory.mktemp("etcd")
    server = EtcdServer(directory)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(directory)  # a member takes 120 MB


@pytest.fixture
def etcd_directory(needs_etcd: None, tmp_path: Path) -> Iterator[Path]:
    """A place for servers of the test's own, removed at once: a member takes 120 MB."""
    directory = tmp_path / "etcd"
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def own_etcd(etcd_directory: Path) -> Iterator[EtcdServer]:
    """An etcd that the test may stop, kill and reconfigure."""
    server = EtcdServer(etcd_directory)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def etcd_options(etcd: EtcdServer) -> EtcdOptions:
    """A prefix of the test's own in the common etcd."""
    return EtcdOptions(endpoints=(etcd.endpoint,), prefix=f"/test/{os.getpid()}/{next(_numbers)}")


@pytest.fixture
async def opened() -> AsyncIterator[Opened]:
    """Open clients of the API server, which are closed after the test."""
    clients: list[KubeClient] = []

    def open_one(options: KubeOptions) -> KubeClient:
        clients.append(KubeClient(KubeFiles(options)))
        return clients[-1]

    yield open_one
    for client in clients:
        await client.close()
