"""The API server's address that pods are told is a Service's: where it is not reached, kube-proxy may be lacking."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from flannel_udp.errors import RegistryError
from flannel_udp.options import KubeOptions
from flannel_udp.registry.kube import options as kube_options
from flannel_udp.registry.kube.client import KubeClient
from flannel_udp.registry.kube.options import KubeFiles
from tests.kube_api.server import ApiServer
from tests.registry.certificates import make_authority, make_certificate


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, socket.socket]]:
    """Yield a pod's service account, and what listens at the address that the pod is told: nobody answers there."""
    make_authority(tmp_path, "ca").certfile.rename(tmp_path / "ca.crt")
    for name in ("token", "namespace"):
        (tmp_path / name).write_text("x")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(listener.getsockname()[1]))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield tmp_path, listener


KUBE_PROXY = r" \(usually a Service's address: does kube-proxy run on this node\? Else give --kubeconfig-file\)$"


async def test_a_services_address_that_nobody_answers_makes_one_think_of_kube_proxy(
    pod: tuple[Path, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    service_account, listener = pod
    monkeypatch.setattr(kube_options, "REQUEST_TIMEOUT_S", 0.1)
    client = KubeClient(KubeFiles(KubeOptions(subnet_mgr=True), service_account))
    with pytest.raises(RegistryError, match=f"GET /api/v1/nodes/h1: no answer in time{KUBE_PROXY}"):
        await client.get_node("h1")
    listener.close()
    with pytest.raises(RegistryError, match=f"GET /api/v1/nodes/h1: .*{KUBE_PROXY}"):
        await client.get_node("h1")
    await client.close()


async def test_a_services_address_at_which_somebody_else_answers_is_no_matter_of_kube_proxy(
    pod: tuple[Path, socket.socket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = make_certificate(tmp_path, "server", make_authority(tmp_path, "strange"), "IP:127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(stranger.certfile, stranger.keyfile)
    with ApiServer(tls=context) as secure:
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(secure.address[1]))
        client = KubeClient(KubeFiles(KubeOptions(subnet_mgr=True), pod[0]))
        with pytest.raises(RegistryError, match="CERTIFICATE_VERIFY_FAILED") as caught:
            await client.get_node("h1")
        await client.close()
    assert "kube-proxy" not in str(caught.value)
