"""Wrong flags, files and environment of the Kubernetes subnet manager: one line, before anything is asked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flannel_udp.errors import UsageError
from flannel_udp.options import KubeOptions
from flannel_udp.registry.kube.client import KubeClient
from flannel_udp.registry.kube.options import Identity, KubeFiles, open_http, read_identity
from tests.support.patience import PATIENCE_S

GOOD: dict[str, Any] = {
    "current-context": "c",
    "clusters": [{"name": "k", "cluster": {"server": "https://192.0.2.1:6443"}}],
    "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
    "users": [{"name": "u", "user": {"token": "geheim"}}],
}


def opened(options: KubeOptions, service_account: Path = Path("/nonexistent")) -> str:
    return str(open_http(options, service_account).base_url)


def fault_of(tmp_path: Path, content: str | bytes) -> str:
    path = tmp_path / "kubeconfig"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UsageError) as caught:
        opened(KubeOptions(kubeconfig_file=path))
    message = str(caught.value)
    assert message.startswith(f"--kubeconfig-file {path}: ")
    assert "\n" not in message
    assert "geheim" not in message
    return message.removeprefix(f"--kubeconfig-file {path}: ")


# Where the API server is


def test_the_kubeconfig_says_where_the_server_is_unless_the_url_does(tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(GOOD))
    assert opened(KubeOptions(kubeconfig_file=path)) == "https://192.0.2.1:6443"
    assert opened(KubeOptions(kubeconfig_file=path, api_url="https://192.0.2.9")) == "https://192.0.2.9"


def test_the_url_alone_is_enough() -> None:
    assert opened(KubeOptions(api_url="http://192.0.2.9:8080")) == "http://192.0.2.9:8080"


def test_a_kubeconfig_without_a_user_is_anonymous(tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(GOOD | {"contexts": [{"name": "c", "context": {"cluster": "k"}}]}))
    assert opened(KubeOptions(kubeconfig_file=path)) == "https://192.0.2.1:6443"


def test_outside_a_pod_and_without_flags_both_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    missing = (
        r"^the pod's service account: No such file or directory: '.*/token'; outside a pod give --kubeconfig-file or"
    )
    with pytest.raises(UsageError, match=missing):
        opened(KubeOptions())
    for name in ("token", "namespace"):
        (tmp_path / name).write_text("geheim")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(UsageError, match="'KUBERNETES_SERVICE_HOST' is not there; outside a pod give"):
        opened(KubeOptions(), tmp_path)


# Kubeconfigs


def test_a_kubeconfig_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"--kubeconfig-file {tmp_path}/none: Configuration file .* not found"):
        opened(KubeOptions(kubeconfig_file=tmp_path / "none"))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "not what a kubeconfig looks like"),
        ("[geheim]", "not what a kubeconfig looks like"),
        ("users:\n- token: 'geheim\n", "no YAML: line 3"),
        ("a: b: geheim", "no YAML: line 1"),
        (b"\xff\xfe\x00geheim", "not what a kubeconfig looks like"),
        (b"token: geheim\x00", "not what a kubeconfig looks like"),
        ("users: []", "'clusters' is not there"),
        (json.dumps(GOOD | {"current-context": None}), "No current context set"),
        (json.dumps(GOOD | {"current-context": "d"}), "Context 'd' not found"),
        (json.dumps(GOOD | {"clusters": []}), "'k' is not there"),
        (json.dumps(GOOD | {"users": []}), "'u' is not there"),
        (
            json.dumps(GOOD | {"users": [{"name": "u", "user": {"token": ["geheim"]}}]}),
            "Expected `str | null`, got `array`",
        ),
        (json.dumps(GOOD | {"users": [{"name": "u"}]}), "'user' is not there"),
    ],
)
def test_a_kubeconfig_that_is_wrong_is_named_without_its_secrets(
    content: str | bytes, fault: str, tmp_path: Path
) -> None:
    assert fault in fault_of(tmp_path, content)


@pytest.mark.parametrize("server", ["192.0.2.1:6443", "ftp://api", "https://", "", "https://[::1", "https://api:x"])
def test_a_server_that_is_no_url_is_named(server: str, tmp_path: Path) -> None:
    content = json.dumps(GOOD | {"clusters": [{"name": "k", "cluster": {"server": server}}]})
    assert fault_of(tmp_path, content) == f"the server {server!r} is no http or https URL"


@pytest.mark.parametrize(
    ("cluster", "user", "fault"),
    [
        (
            {"proxy-url": "http://u:geheim@192.0.2.7:3128"},
            {},
            "proxy-url is not supported: set https_proxy in the agent's environment",
        ),
        ({}, {"as": "geheim"}, "as is not supported: give us a user of our own"),
        ({}, {"as-uid": "geheim"}, "as-uid is not supported: give us a user of our own"),
        ({}, {"as-groups": ["geheim"]}, "as-groups is not supported: give us a user of our own"),
        ({}, {"as-user-extra": {"geheim": ["x"]}}, "as-user-extra is not supported: give us a user of our own"),
        ({"tls-server-name": 7}, {}, "Expected `str | null`, got `int` - at `$.tls-server-name`"),
    ],
)
def test_what_kubectl_obeys_and_we_do_not_is_refused(
    cluster: dict[str, Any], user: dict[str, Any], fault: str, tmp_path: Path
) -> None:
    content = GOOD | {
        "clusters": [{"name": "k", "cluster": {"server": "https://192.0.2.1", **cluster}}],
        "users": [{"name": "u", "user": {"token": "geheim", **user}}],
    }
    assert fault_of(tmp_path, json.dumps(content)) == fault


def test_what_is_empty_or_of_another_context_is_no_matter(tmp_path: Path) -> None:
    cluster = {"server": "https://192.0.2.1", "proxy-url": "", "tls-server-name": "", "disable-compression": True}
    user: dict[str, Any] = {"as": "", "as-groups": [], "as-user-extra": None}
    content = GOOD | {
        "clusters": [{"name": "k", "cluster": cluster}, {"name": "o", "cluster": {"server": "x", "proxy-url": "x"}}],
        "users": [{"name": "u", "user": user}, {"name": "o", "user": {"as": "x"}}],
    }
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(content))
    assert opened(KubeOptions(kubeconfig_file=path)) == "https://192.0.2.1"


def test_certificates_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    cluster = {"server": "https://192.0.2.1", "certificate-authority": "/nonexistent/ca.pem"}
    fault = fault_of(tmp_path, json.dumps(GOOD | {"clusters": [{"name": "k", "cluster": cluster}]}))
    assert fault == "certificate-authority /nonexistent/ca.pem: No such file or directory"
    user = {"client-certificate": "/nonexistent/cert.pem", "client-key": "key.pem"}
    fault = fault_of(tmp_path, json.dumps(GOOD | {"users": [{"name": "u", "user": user}]}))
    assert fault == "client-certificate /nonexistent/cert.pem: No such file or directory"
    cluster = {"server": "https://192.0.2.1", "certificate-authority-data": "Z2VoZWlt"}
    fault = fault_of(tmp_path, json.dumps(GOOD | {"clusters": [{"name": "k", "cluster": cluster}]}))
    assert fault.startswith("the credentials: not PEM")
    user = {"client-certificate-data": "Z2VoZWlt", "client-key-data": "Z2VoZWlt"}
    fault = fault_of(tmp_path, json.dumps(GOOD | {"users": [{"name": "u", "user": user}]}))
    assert fault.startswith("the credentials: not PEM")
    fault = fault_of(tmp_path, json.dumps(GOOD | {"users": [{"name": "u", "user": {"auth-provider": {"name": "x"}}}]}))
    assert fault == "the credentials: auth-provider not supported"


@pytest.mark.parametrize("server", ["https://192.0.2.1", "http://192.0.2.1"])
def test_a_file_of_authorities_that_the_environment_names_wrongly_is_named(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = json.dumps(GOOD | {"clusters": [{"name": "k", "cluster": {"server": server}}]})
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent.pem")
    assert fault_of(tmp_path, content) == "SSL_CERT_FILE /nonexistent.pem: No such file or directory"
    monkeypatch.setenv("SSL_CERT_FILE", "/dev/null")
    assert fault_of(tmp_path, content).startswith("SSL_CERT_FILE /dev/null: not PEM")


# The proxy that the environment names


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({}, ""),
        ({"http_proxy": "http://192.0.2.7"}, ""),  # the server is https
        ({"https_proxy": "http://192.0.2.7"}, " (by the proxy that https_proxy names)"),
        ({"all_proxy": "http://192.0.2.7"}, " (by the proxy that all_proxy names)"),
        ({"https_proxy": "http://192.0.2.7", "no_proxy": "192.0.2.1"}, ""),
        (  # a network: which of these the HTTP library passes over is its own matter
            {"https_proxy": "http://192.0.2.7", "no_proxy": "192.0.2.0/24"},
            " (by the proxy that https_proxy names, unless no_proxy says otherwise)",
        ),
    ],
)
async def test_a_proxy_is_named_and_none_is_blamed_that_may_not_be_used(
    environ: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    client = KubeClient(KubeFiles(KubeOptions(api_url="https://192.0.2.1:6443")))
    await client.close()
    assert client.name == f"Kubernetes at https://192.0.2.1:6443{says}"


# Which node


def test_the_node_is_named_or_found_through_the_pod() -> None:
    assert read_identity({"NODE_NAME": "h1"}) == Identity("h1")
    assert read_identity({"POD_NAMESPACE": "n", "POD_NAME": "p"}) == Identity("", "n", "p")


@pytest.mark.parametrize("environ", [{}, {"NODE_NAME": ""}, {"POD_NAME": "p"}, {"POD_NAMESPACE": "n", "POD_NAME": ""}])
def test_without_a_node_it_says_what_to_set(environ: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"which node is this\? Set NODE_NAME .*POD_NAMESPACE and POD_NAME"):
        read_identity(environ)


# The extra


def test_without_the_extra_it_says_what_to_install() -> None:
    script = """
import sys
sys.modules["lightkube"] = None
from flannel_udp.errors import UsageError
from flannel_udp.options import KubeOptions, Options
from flannel_udp.registry.open import open_registry
try:
    open_registry(Options(kube=KubeOptions(subnet_mgr=True)))
except UsageError as error:
    print(error, error.exit_code)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert done.stdout == "--kube-subnet-mgr needs the Python package lightkube: pip install 'flannel-udp[kube]' 2\n"


def test_without_kubernetes_none_of_its_packages_is_loaded() -> None:
    script = """
import sys
from pathlib import Path
from flannel_udp.options import Options
from flannel_udp.registry.open import open_registry
open_registry(Options(registry="file:/nonexistent"))
print({"lightkube", "httpx2", "yaml"} & sys.modules.keys())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert done.stdout == "set()\n"
