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
from tests.registry.certificates import Pair, make_authority, make_certificate, make_intermediate


@pytest.fixture
def strict_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make contexts as Python 3.13 does, on older ones as well."""
    make: Callable[..., ssl.SSLContext] = ssl.create_default_context

    def make_strict(*args: object, **kwargs: object) -> ssl.SSLContext:
        context = make(*args, **kwargs)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", make_strict)


async def ask(server: Pair, authority: Path, directory: Path, **more: str) -> list[str | None]:
    """Ask an API server that has this certificate, with a kubeconfig that has this authority, and `more` of a cluster.

    Return the names that it was asked for.
    """
    asked: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = lambda _connection, name, _context: asked.append(name)
    context.load_cert_chain(server.certfile, server.keyfile)
    with ApiServer(tls=context) as secure:
        secure.add_node("h1", "10.1.1.0/24")
        kubeconfig = directory / "kubeconfig"
        cluster = {"server": secure.url, "certificate-authority": str(authority), **more}
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
            assert (await client.get_node("h1")).name == "h1"
            assert (await anext(client.watch_nodes("1001"))).node is None
            return asked
        finally:
            await client.close()


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
        if fault:
            with pytest.raises(RegistryError, match=fault):
                await ask(server, authority.certfile, tmp_path)
        else:
            await ask(server, authority.certfile, tmp_path)


async def test_an_intermediate_authority_is_one_to_trust_though_its_root_is_not_there(tmp_path: Path) -> None:
    root, stranger = make_authority(tmp_path, "root"), make_authority(tmp_path, "stranger")
    authority = make_intermediate(tmp_path, "intermediate", root)
    server = make_certificate(tmp_path, "server", authority, "IP:127.0.0.1")
    await ask(server, authority.certfile, tmp_path)
    chain = tmp_path / "chain.crt"
    chain.write_bytes(server.certfile.read_bytes() + authority.certfile.read_bytes())
    for trusted in (authority, root):
        await ask(Pair(chain, server.keyfile), trusted.certfile, tmp_path)
    await ask(server, server.certfile, tmp_path)  # nobody else than this one
    for pair, trusted in ((Pair(chain, server.keyfile), stranger), (server, root)):
        with pytest.raises(RegistryError, match="CERTIFICATE_VERIFY_FAILED"):
            await ask(pair, trusted.certfile, tmp_path)


async def test_a_server_is_known_by_the_name_that_the_kubeconfig_has_for_it(tmp_path: Path) -> None:
    """It is a certificate of the name in front of a load balancer, say, which is reached at an address."""
    authority = make_authority(tmp_path, "ca")
    server = make_certificate(tmp_path, "server", authority, "DNS:api.example")
    asked = await ask(server, authority.certfile, tmp_path, **{"tls-server-name": "api.example"})
    assert set(asked) == {"api.example"}
    for other in ("elsewhere.example", ""):
        with pytest.raises(RegistryError, match="CERTIFICATE_VERIFY_FAILED"):
            await ask(server, authority.certfile, tmp_path, **{"tls-server-name": other})
