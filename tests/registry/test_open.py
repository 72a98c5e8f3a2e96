"""Wrong flags are found when the registry is opened, before anything is asked of it."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from flannel_udp.errors import UnusableFile, UsageError
from flannel_udp.files.secret import secret_in
from flannel_udp.options import EtcdOptions, Options
from flannel_udp.registry.etcd.options import open_credentials, parse_endpoints, read_secrets
from flannel_udp.registry.open import open_registry
from flannel_udp.registry.urls import Endpoint
from tests.registry.certificates import Pair, make_authority
from tests.support.patience import PATIENCE_S


@pytest.mark.parametrize("registry", ["", "file", "file:", "etcd:", "consul", "/etc/registry.json"])
async def test_an_unknown_registry_is_refused(registry: str) -> None:
    with pytest.raises(UsageError, match=r"--registry .*: give etcd or file:PATH"):
        open_registry(Options(registry=registry))


# Endpoints


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("http://127.0.0.1:2379", Endpoint("http://127.0.0.1:2379", "dns:///127.0.0.1:2379")),
        (" http://etcd.example:4001/ ", Endpoint("http://etcd.example:4001", "dns:///etcd.example:4001")),
        ("http://etcd.example", Endpoint("http://etcd.example:2379", "dns:///etcd.example:2379")),
        ("127.0.0.1:2379", Endpoint("http://127.0.0.1:2379", "dns:///127.0.0.1:2379")),
        ("http://[2001:db8::1]:2379", Endpoint("http://[2001:db8::1]:2379", "dns:///[2001:db8::1]:2379")),
    ],
)
def test_endpoints_are_urls_of_addresses_or_names(url: str, endpoint: Endpoint) -> None:
    assert parse_endpoints((url,)) == ([endpoint], False)


def test_https_endpoints_mean_tls() -> None:
    assert parse_endpoints(("https://a", "https://b:1"))[1] is True


@pytest.mark.parametrize(
    ("urls", "fault"),
    [
        ((), "give at least one URL"),
        (("http://a:1", "https://b:1"), "http and https are mixed"),
        (("",), "is no URL"),
        (("http://",), "is no URL"),
        (("http://a b:1",), "is no URL"),
        (("ftp://a:1",), "the scheme must be http or https"),
        (("unix:///run/etcd.sock",), "the scheme must be http or https"),
        (("http://a:port",), "the port must be a number below 65536, an IPv6 address in brackets"),
        (("http://a:65536",), "the port must be a number below 65536, an IPv6 address in brackets"),
        (("http://a:0",), "is no URL"),
        (("http://a:",), "there is no port after the colon"),
        (("http://[::1:2379",), "the port must be a number below 65536, an IPv6 address in brackets"),
        (("http://a:1/v3",), "nothing may follow the port"),
        (("http://a:1?x=1",), "nothing may follow the port"),
        (("http://root:geheim@a:1",), "use --etcd-username and --etcd-password"),
        (("http://root:geheim@a:port",), "the port must be a number below 65536, an IPv6 address in brackets"),
        (("http://root:geheim/geheim@a:1",), "the port must be a number below 65536, an IPv6 address in brackets"),
        (("http://root?geheim@a:1",), "nothing may follow the port"),
        (("http://root:geheim℀x@a:1",), "the port must be a number below 65536, an IPv6 address in brackets"),
        (("http://root:geheim@[::1",), "the port must be a number below 65536, an IPv6 address in brackets"),
    ],
)
def test_a_wrong_endpoint_is_refused_without_telling_a_password(urls: tuple[str, ...], fault: str) -> None:
    with pytest.raises(UsageError, match="--etcd-endpoints: ") as caught:
        parse_endpoints(urls)
    assert fault in str(caught.value)
    assert "geheim" not in str(caught.value)


# Certificates


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_authority(tmp_path_factory.mktemp("certificates"), "someone")


def _with(options: EtcdOptions, flag: str, path: Path) -> EtcdOptions:
    match flag:
        case "cafile":
            return replace(options, cafile=path)
        case "certfile":
            return replace(options, certfile=path)
        case _:
            return replace(options, keyfile=path)


def test_without_https_and_files_there_is_no_tls() -> None:
    assert open_credentials(EtcdOptions(), https=False) is None


def test_the_scheme_and_no_certificate_means_tls(pair: Pair) -> None:
    assert open_credentials(EtcdOptions(cafile=pair.certfile), https=False) is None
    assert open_credentials(EtcdOptions(cafile=pair.certfile), https=True) is not None
    assert open_credentials(EtcdOptions(), https=True) is not None


def test_a_certificate_and_its_key_belong_together(pair: Pair) -> None:
    for options in (EtcdOptions(certfile=pair.certfile), EtcdOptions(keyfile=pair.keyfile)):
        with pytest.raises(UsageError, match="--etcd-certfile and --etcd-keyfile belong together"):
            open_credentials(options, https=True)


@pytest.mark.parametrize("flag", ["cafile", "certfile", "keyfile"])
def test_a_file_that_cannot_be_read_is_named_with_its_flag(flag: str, pair: Pair, tmp_path: Path) -> None:
    options = EtcdOptions(cafile=pair.certfile, certfile=pair.certfile, keyfile=pair.keyfile)
    missing = tmp_path / "missing.pem"
    with pytest.raises(UnusableFile) as caught:
        open_credentials(_with(options, flag, missing), https=True)
    assert str(caught.value) == f"--etcd-{flag} {missing}: No such file or directory"
    with pytest.raises(UnusableFile) as caught:
        open_credentials(_with(options, flag, tmp_path), https=True)
    assert str(caught.value) == f"--etcd-{flag} {tmp_path}: Is a directory"


@pytest.mark.parametrize("content", [b"", b"no certificate\n", b"\x00\xff" * 100])
@pytest.mark.parametrize("flag", ["cafile", "certfile", "keyfile"])
def test_a_file_that_holds_something_else_is_named_with_its_flag(
    flag: str, content: bytes, pair: Pair, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.pem"
    wrong.write_bytes(content)
    options = EtcdOptions(cafile=pair.certfile, certfile=pair.certfile, keyfile=pair.keyfile)
    with pytest.raises(UnusableFile) as caught:
        open_credentials(_with(options, flag, wrong), https=True)
    assert f"--etcd-{flag} {wrong}" in str(caught.value)
    assert "PEM" in str(caught.value)


def test_a_key_of_another_certificate_is_refused(pair: Pair, tmp_path: Path) -> None:
    stranger = make_authority(tmp_path, "stranger")
    with pytest.raises(UnusableFile, match="not a certificate and its unencrypted key"):
        open_credentials(EtcdOptions(certfile=pair.certfile, keyfile=stranger.keyfile), https=True)


def test_an_encrypted_key_is_refused_and_no_password_asked_for(pair: Pair, tmp_path: Path) -> None:
    encrypted = tmp_path / "encrypted.key"
    command = [
        "openssl",
        "pkcs8",
        "-topk8",
        "-in",
        str(pair.keyfile),
        "-out",
        str(encrypted),
        "-passout",
        "pass:geheim",
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S)
    with pytest.raises(UnusableFile, match="not a certificate and its unencrypted key"):
        open_credentials(EtcdOptions(certfile=pair.certfile, keyfile=encrypted), https=True)


@pytest.mark.parametrize("content", [None, b"", b"\n", b"hunter2\nhunter2\n", b"\xffhunter2", b"hunter2\0"])
def test_a_password_file_that_is_no_line_yet_is_read_again_when_it_is_needed_and_not_told(
    tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    options = EtcdOptions(password=secret_in(file))
    with pytest.raises(UnusableFile, match="--etcd-password-file: ") as caught:
        read_secrets(options, https=False)
    assert str(file) in str(caught.value)
    assert "hunter2" not in str(caught.value)
    file.write_text("hunter2\n")
    assert read_secrets(options, https=False).password == "hunter2"  # noqa: S105 - of nobody
