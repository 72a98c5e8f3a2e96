"""`config get` and `config put` against a registry file, through the program."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flannel_udp.cli.main import main
from tests.support.patience import PATIENCE_S

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
    assert capsys.readouterr() == ("stored: the registry's first network configuration\n", "")
    assert json.loads(registry.read_text())["config"] == json.loads(RAW)
    assert main(["config", "get", "-registry", f"file:{registry}"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == json.loads(RAW)
    assert err == ""


def test_what_programs_get_is_json(registry: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["config", "get", f"--registry=file:{registry}", "--json"]
    registry.write_text(json.dumps({"config": {"Network": "nonsense"}}))
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out) == {"Network": "nonsense"}  # unchecked, as without --json


def test_the_registry_may_come_from_the_environment(
    registry: Path, document: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLANNELD_REGISTRY", f"file:{registry}")
    assert main(["config", "put", str(document)]) == 0
    capsys.readouterr()
    assert main(["config", "get"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(RAW)


def test_put_reads_standard_input(registry: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "flannel_udp", "config", "put", "-", f"--registry=file:{registry}"],
        input=RAW.encode(),
        timeout=PATIENCE_S,
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


# --- what `config put` says of a configuration that was there ---------------------------------------------------------

RESTART = "flannel-udp: warning: agents that run keep the former configuration until they are started again"
APART = "; until then pods of hosts with the former and with the new one do not reach each other"


class Put:
    """`config put` over and over into one registry file."""

    def __init__(self, registry: Path, document: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.registry = registry
        self._document = document
        self._capsys = capsys

    def __call__(self, text: str, *flags: str) -> tuple[list[str], list[str]]:
        """Return the lines on stdout and on stderr."""
        self._document.write_text(text)
        assert main(["config", "put", str(self._document), f"--registry=file:{self.registry}", *flags]) == 0
        out, err = self._capsys.readouterr()
        return out.splitlines(), err.splitlines()

    def document(self, text: str) -> Any:
        return json.loads("\n".join(self(text, "--json")[0]))


@pytest.fixture
def put(registry: Path, document: Path, capsys: pytest.CaptureFixture[str]) -> Put:
    return Put(registry, document, capsys)


def test_another_backend_is_shown_key_by_key_and_splits_the_cluster_until_all_are_restarted(put: Put) -> None:
    put('{"Network": "10.1.0.0/16"}')
    out, err = put('{"Network": "10.1.0.0/16", "Backend": {"Type": "Host-GW"}}')
    assert out == ["Backend.Type: udp → host-gw", "Backend.Port: 8285 → -", "Backend.DSCP: 0 → -", "stored"]
    assert err == [RESTART + APART]


def test_another_network_is_shown_with_all_that_follows_from_it(put: Put) -> None:
    put('{"Network": "10.1.0.0/16"}')
    out, err = put('{"Network": "10.2.0.0/16"}')
    assert out == [
        "Network: 10.1.0.0/16 → 10.2.0.0/16",
        "SubnetMin: 10.1.1.0 → 10.2.1.0",
        "SubnetMax: 10.1.255.0 → 10.2.255.0",
        "stored",
    ]
    assert err == [RESTART + APART]


def test_another_option_splits_nothing_and_takes_a_restart(put: Put) -> None:
    put('{"Network": "10.1.0.0/16"}')
    out, err = put('{"Network": "10.1.0.0/16", "EnableNFTables": true, "Backend": {"MTU": 1400}}')
    assert out == ["EnableNFTables: false → true", "Backend.MTU: - → 1400", "stored"]
    assert err == [RESTART]


def test_the_same_configuration_is_not_stored_again(put: Put) -> None:
    put(RAW)
    before = put.registry.stat()
    assert put(RAW.replace("\n", " ")) == (["nothing stored: the registry holds this configuration already"], [])
    after = put.registry.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_the_same_in_other_words_is_stored_and_said_to_be_the_same(put: Put) -> None:
    put('{"Network": "10.1.0.0/16"}')
    assert put('{"network": "10.1.0.0/16", "SubnetLen": 24}') == (
        ["stored: written in another way, it means the same as before"],
        [],
    )
    assert json.loads(put.registry.read_text())["config"] == {"network": "10.1.0.0/16", "SubnetLen": 24}


@pytest.mark.parametrize(
    "former", ['{"Network": 5}', "5", '{"Network": "10.1.0.0/16", "Backend": {"Type": "wireguard"}}']
)
def test_what_was_stored_before_hinders_nothing_whatever_it_is(put: Put, former: str) -> None:
    put.registry.write_text(f'{{"config": {former}}}')
    out, err = put(RAW)
    assert out == ["stored"]
    assert err[0].startswith("flannel-udp: warning: what the registry held before cannot be compared: ")
    assert err[1:] == [RESTART]
    assert json.loads(put.registry.read_text())["config"] == json.loads(RAW)


def test_programs_get_a_document(put: Put) -> None:
    network = '{"Network": "10.1.0.0/16"}'
    first = {"stored": True, "former": "none", "changes": [], "warnings": []}
    assert put.document(network) == first
    assert put.document(network) == {**first, "stored": False, "former": "valid"}
    changed = put.document('{"Network": "10.1.0.0/16", "Backend": {"MTU": 1400}}')
    assert changed["changes"] == [{"key": "Backend.MTU", "old": None, "new": 1400}]
    assert len(changed["warnings"]) == 1


def test_programs_get_the_faults_as_from_config_check(document: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document.write_text('{"Network": 5}')
    assert main(["config", "put", str(document), "--registry=file:/nowhere/registry.json", "--json"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out) == {"ok": False, "faults": [err.removeprefix("flannel-udp: ").rstrip()]}
