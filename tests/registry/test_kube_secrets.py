"""What only we, the API server and a proxy may know: whatever is wrong with it, no fault tells it."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from flannel_udp.doctor.clock import ask_clock
from flannel_udp.errors import FlannelError, RegistryDenied, RegistryError, UnusableFile, UsageError
from flannel_udp.options import KubeOptions, Options
from flannel_udp.registry.kube.options import open_http
from flannel_udp.registry.servers import servers_of
from tests.kube_api.server import ApiServer
from tests.support.kube_clients import Opened

SECRET = "eyJhbGciOi.geheim.c2lnbmF0dXI"  # noqa: S105 - nobody's


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with ApiServer() as api:
        api.add_node("h1", "10.1.1.0/24")
        api.tokens = {SECRET: "flannel"}
        yield api


Configured = Callable[..., KubeOptions]


@pytest.fixture
def configured(api: ApiServer, tmp_path: Path) -> Configured:
    """Make a kubeconfig of a user, as YAML or as a mapping, and of a server."""

    def make(user: str | Mapping[str, Any], server: str = "") -> KubeOptions:
        text = user if isinstance(user, str) else json.dumps(user)
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(
            "current-context: x\n"
            "contexts: [{name: x, context: {cluster: c, user: u}}]\n"
            f"clusters: [{{name: c, cluster: {{server: {json.dumps(server or api.url)}}}}}]\n"
            f"users:\n- name: u\n  user:\n    {text}\n"
        )
        return KubeOptions(subnet_mgr=True, kubeconfig_file=kubeconfig)

    return make


def told(error: FlannelError) -> str:
    """Return the one line that an error is, which tells no secret."""
    text = str(error)
    assert text.isprintable()
    assert not re.search("geheim|eyJ", text)
    return text


# A token in the kubeconfig


@pytest.mark.parametrize("user", [f"token: |\n      {SECRET}", f'token: " {SECRET}\\r\\n"', f"token: {SECRET}"])
async def test_blanks_around_a_token_are_none_of_it(user: str, configured: Configured, opened: Opened) -> None:
    assert (await opened(configured(user)).get_node("h1")).name == "h1"


@pytest.mark.parametrize("token", [f"{SECRET}\n{SECRET}", f"{SECRET}\0", f"{SECRET}\x7f", f"{SECRET}é"])
def test_a_token_that_can_be_none_is_one_line_that_does_not_quote_it(token: str, configured: Configured) -> None:
    options = configured({"token": token})
    with pytest.raises(UnusableFile) as caught:
        open_http(options)
    assert told(caught.value) == (
        f"--kubeconfig-file {options.kubeconfig_file}: its token is not one line of plain ASCII"
    )


@pytest.mark.parametrize("user", ['token: ""', "token: |\n      ", 'tokenFile: ""'])
async def test_an_empty_token_is_none(user: str, api: ApiServer, configured: Configured, opened: Opened) -> None:
    api.tokens = {}
    assert (await opened(configured(user)).get_node("h1")).name == "h1"
    assert api.requests[-1].user == "system:anonymous"


# A token in a file of its own


async def test_a_token_file_is_read_again_once_its_token_is_refused(
    api: ApiServer, configured: Configured, opened: Opened, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(f"{SECRET}\n")
    client = opened(configured({"tokenFile": str(file), "token": "another"}))
    for _ in range(2):
        await client.get_node("h1")
    api.tokens = {"better": "flannel"}
    with pytest.raises(RegistryDenied, match="not logged in"):
        await client.get_node("h1")
    file.write_text("better")
    await client.get_node("h1")


async def test_a_token_file_counts_from_the_kubeconfig(
    configured: Configured, opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "token").write_text(SECRET)
    assert (await opened(configured({"tokenFile": "secrets/token"})).get_node("h1")).name == "h1"


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (f"{SECRET}\n{SECRET}\n".encode(), "holds no token: it must be one line of plain ASCII"),
        (f"{SECRET}é".encode(), "holds no token: it must be one line of plain ASCII"),
        (SECRET.encode() + b"\xff\xfe", "holds no token: it must be one line of plain ASCII"),
        (SECRET.encode() + b"\0", "holds no token: it must be one line of plain ASCII"),
        (b" \n", "holds no token: it must be one line of plain ASCII"),
        (None, "cannot be read: No such file or directory"),
    ],
)
async def test_a_token_file_that_holds_none_is_one_line_that_does_not_quote_it(
    content: bytes | None, fault: str, configured: Configured, opened: Opened, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    client = opened(configured({"tokenFile": str(file)}))
    for ask in (lambda: client.get_node("h1"), lambda: anext(client.watch_nodes("1"))):
        with pytest.raises(RegistryDenied) as caught:
            await ask()
        assert told(caught.value).endswith(f": the token file {file} {fault}")


# A user and a password in a URL


@pytest.mark.parametrize(
    "server",
    [
        "https://u:geheim@192.0.2.1:6443x",
        "https://u:geheim/eyJ@192.0.2.1:6443",
        "https://u:geheim#eyJ@192.0.2.1:6443",
        "https://u:geheim℀eyJ@192.0.2.1",
        "https://u:geheim@192.0.2.999",
        "https://u:geheim@",
        "ftp://u:geheim@192.0.2.1",
    ],
)
def test_a_server_that_is_no_url_is_named_without_its_password(server: str, configured: Configured) -> None:
    options = configured({}, server)
    with pytest.raises(UsageError) as caught:
        open_http(options)
    shown = server.rpartition("@")[2]
    assert told(caught.value) == (
        f"--kubeconfig-file {options.kubeconfig_file}: the server {shown!r} is no http or https URL"
    )


async def test_nothing_that_names_the_server_tells_its_password(
    configured: Configured, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ApiServer() as api:
        options = configured({}, api.url.replace("://", "://u:geheim@"))
        client = opened(options)
        assert client.name == f"Kubernetes at {api.url}"
        (server,) = servers_of(Options(kube=options))
        assert server.what == f"the API server {api.url}"
        monkeypatch.setattr("flannel_udp.doctor.clock._OFF_S", -1.0)  # whatever it is
        said = ask_clock(Options(kube=options))
        assert f"that of {api.url}: " in said.what
    with pytest.raises(RegistryError) as caught:
        await client.get_node("h1")
    told(caught.value)


@pytest.mark.parametrize(
    "proxy",
    [
        "http://u:geheim/eyJ@192.0.2.7:3128",
        "http://u:geheim#eyJ@192.0.2.7:3128",
        "socks4://u:geheim@192.0.2.7",
        "socks5://u:geheim@192.0.2.7",
        "http://u:geheim@192.0.2.999",
        "u:geheim\n@192.0.2.7",
    ],
)
@pytest.mark.parametrize("variable", ["https_proxy", "ALL_PROXY"])
def test_a_proxy_that_cannot_be_used_is_one_line_that_does_not_quote_it(
    proxy: str, variable: str, configured: Configured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, proxy)
    with pytest.raises(UsageError) as caught:
        open_http(configured({}))
    assert told(caught.value) == (
        f"the environment's {variable.lower()} names a proxy that cannot be used: give http://HOST:PORT"
    )
    assert not isinstance(caught.value, UnusableFile)  # no waiting helps


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_that_refuses_us_is_not_quoted(
    scheme: str, configured: Configured, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    monkeypatch.setenv(f"{scheme}_proxy", f"http://u:geheim@127.0.0.1:{port}")
    with pytest.raises(RegistryError) as caught:
        await opened(configured({}, f"{scheme}://192.0.2.1")).get_node("h1")
    assert f"(by the proxy that {scheme}_proxy names)" in told(caught.value)
