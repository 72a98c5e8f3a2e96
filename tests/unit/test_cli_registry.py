"""`config get` and `config put` against a registry file, through the program."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flannel_udp.cli.main import main

RAW = '{\n  "Network": "10.1.0.0/16",\n  "Backend": {"Type": "udp"}\n}\n'


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FLANNELD_REGISTRY", "FLANNELD_ETCD_ENDPOINTS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    return tmp_path / "registry.json"


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "net-conf.json"
    path.write_text(RAW)
    return path


def test_what_was_put_can_be_got(registry: Path, document: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "put", str(document), f"--registry=file:{registry}"]) == 0
    assert capsys.readouterr() == ("", "")
    assert json.loads(registry.read_text())["config"] == json.loads(RAW)
    assert main(["config", "get", "-registry", f"file:{registry}"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == json.loads(RAW)
    assert err == ""


def test_the_registry_may_come_from_the_environment(
    registry: Path, document: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLANNELD_REGISTRY", f"file:{registry}")
    assert main(["config", "put", str(document)]) == 0
    assert main(["config", "get"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(RAW)


def test_put_reads_standard_input(registry: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "flannel_udp", "config", "put", "-", f"--registry=file:{registry}"],
        input=RAW.encode(),
        timeout=30,
        check=True,
    )
    assert json.loads(registry.read_text())["config"] == json.loads(RAW)


def test_a_faulty_configuration_is_not_put(
    registry: Path, document: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["config", "put", str(document), f"--registry=file:{registry}"])
    before = registry.read_bytes()
    bad = tmp_path / "bad.json"
    bad.write_text('{"Network": "10.1.0.0/33"}')
    assert main(["config", "put", str(bad), f"--registry=file:{registry}"]) == 2
    assert registry.read_bytes() == before
    err = capsys.readouterr().err
    assert err.startswith("flannel-udp: Network ")
    assert len(err.splitlines()) == 1


def test_a_questionable_configuration_is_put_with_a_warning(
    registry: Path, document: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document.write_text('{"Network": "10.1.0.0/16", "Netmask": 1}')
    assert main(["config", "put", str(document), f"--registry=file:{registry}"]) == 0
    assert capsys.readouterr().err == 'flannel-udp: warning: unknown key "Netmask" is ignored\n'


def test_getting_what_is_not_there_fails_with_one_line(registry: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registry.write_text("{}")
    assert main(["config", "get", f"--registry=file:{registry}"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("flannel-udp: ")
    assert str(registry) in err
    assert len(err.splitlines()) == 1


def test_a_registry_that_is_not_json_fails_with_one_line(registry: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registry.write_text("Network: 10.1.0.0/16")
    assert main(["config", "get", f"--registry=file:{registry}"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("flannel-udp: ")
    assert str(registry) in err
    assert len(err.splitlines()) == 1
