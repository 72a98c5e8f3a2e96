"""Which certificates of an API server are taken: those that flanneld and kubectl take, whichever Python has it."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from flannel_udp.errors import RegistryError
from flannel_udp.options import KubeOptions
from flannel_udp.registry.kube.client import KubeClient
from flannel_udp.registry.kube.options import KubeFiles
from tests.kube_api.server import ApiServer
from tests.registry.certificates import make_authority, make_certificate


@pytest.fixture
def strict_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make contexts as Python 3.13 does, on older ones as well."""
    make: Callable[..., ssl.SSLContext] = ssl.create_default_context

    def make_strict(*args: object, **kwargs: object) -> ssl.SSLContext:
        context = make(*args, **kwargs)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", make_strict)


@pytest.mark.usefixtures("strict_python")
async def test_a_certificate_that_does_not_name_its_authoritys_key_is_taken_and_all_else_of_it_checked(
    tmp_path: Path,
) -> None:
    authority, stranger = make_authority(tmp_path, "ca"), make_authority(tmp_path, "stranger")
    for name, names, signer, fault in (
        ("good", "IP:127.0.0.1", authority, ""),
        ("other name", "DNS:elsewhere", authority, "IP address mismatch"),
        ("other authority", "IP:127.0.0.1", stranger, "CERTIFICATE_VERIFY_FAILED"),
    ):
        server = make_certificate(tmp_path, name, signer, names, names_authority=False)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(server.certfile, server.keyfile)
        with ApiServer(tls=context) as secure:
            secure.add_node("h1", "10.1.1.0/24")
            kubeconfig = tmp_path / "kubeconfig"
            cluster = {"server": secure.url, "certificate-authority": str(authority.certfile)}
            kubeconfig.write_text(
                json.dumps(
                    {
                        "current-context": "x",
                        "contexts": [{"name": "x", "context": {"cluster": "c"}}],
                        "clusters": [{"name": "c", "cluster": cluster}],
                        "users": [],
                    }
                )
            )
            client = KubeClient(KubeFiles(KubeOptions(subnet_mgr=True, kubeconfig_file=kubeconfig)))
            try:
                if fault:
                    with pytest.raises(RegistryError, match=fault):
                        await client.get_node("h1")
                else:
                    assert (await client.get_node("h1")).name == "h1"
            finally:
                await client.close()
