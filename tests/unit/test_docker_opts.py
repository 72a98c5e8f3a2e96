"""Docker's options: what flannel's script writes, byte for byte, by our command and by the script of its name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flannel_udp.cli.main import main

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "mk-docker-opts.sh"
BIP, MASQ, MTU = "--bip=10.1.15.1/24", "--ip-masq=true", "--mtu=1472"
INDIVIDUAL = f'DOCKER_OPT_BIP="{BIP}"\nDOCKER_OPT_IPMASQ="{MASQ}"\nDOCKER_OPT_MTU="{MTU}"\n'
COMBINED = f'DOCKER_OPTS=" {BIP} {MASQ} {MTU}"\n'
CASES = [
    ([], INDIVIDUAL + COMBINED),
    (["-i", "-c"], INDIVIDUAL + COMBINED),
    (["-i"], INDIVIDUAL),
    (["-c"], COMBINED),
    (["-c", "-k", "NET_OPTS"], f'NET_OPTS=" {BIP} {MASQ} {MTU}"\n'),
    (["-m"], f'DOCKER_OPT_BIP="{BIP}"\nDOCKER_OPT_MTU="{MTU}"\nDOCKER_OPTS=" {BIP} {MTU}"\n'),
]


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    env = tmp_path / "subnet.env"
    env.write_text("FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.15.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n")
    return ["-f", str(env), "-d", str(tmp_path / "docker")]


@pytest.mark.parametrize(("flags", "text"), CASES)
def test_every_flag(files: list[str], tmp_path: Path, flags: list[str], text: str) -> None:
    assert main(["docker-opts", *files, *flags]) == 0
    assert (tmp_path / "docker").read_text() == text


@pytest.mark.parametrize(
    ("flags", "text"), [*CASES, (["-ic"], INDIVIDUAL + COMBINED), (["-cmkN"], f'N=" {BIP} {MTU}"\n')]
)
def test_the_script_of_flannels_name(files: list[str], tmp_path: Path, flags: list[str], text: str) -> None:
    env = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(["sh", SCRIPT, *files, *flags], check=True, timeout=30, env=env)
    assert (tmp_path / "docker").read_text() == text


def test_with_flannels_masquerade_docker_does_none(files: list[str], tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    path.write_text(path.read_text().replace("IPMASQ=false", "IPMASQ=true"))
    assert main(["docker-opts", *files, "-c"]) == 0
    assert (tmp_path / "docker").read_text() == f'DOCKER_OPTS=" {BIP} --ip-masq=false {MTU}"\n'


def test_what_the_environment_has_comes_first(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_OPTS", "--debug")
    monkeypatch.setenv("DOCKER_OPT_DNS", "--dns=192.0.2.53")
    assert main(["docker-opts", *files, "-c"]) == 0
    assert (tmp_path / "docker").read_text() == f'DOCKER_OPTS="--debug  {BIP} --dns=192.0.2.53 {MASQ} {MTU}"\n'


@pytest.mark.parametrize(
    ("change", "code", "part"),
    [
        (["-f", "/nowhere/subnet.env"], 1, "there is no /nowhere/subnet.env: the agent writes it"),
        (["-d", "/nowhere/docker"], 1, "cannot write /nowhere/docker: No such file or directory"),
        (["-k", "A-B"], 2, "-k: 'A-B' is no name of a variable"),
        (["-x"], 2, "unknown flag"),
    ],
)
def test_bad_input_is_one_clear_line(
    files: list[str], capsys: pytest.CaptureFixture[str], change: list[str], code: int, part: str
) -> None:
    assert main(["docker-opts", *files, *change]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert part in line


def test_missing_keys_are_all_named_and_nothing_is_written(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "subnet.env").write_text("FLANNEL_NETWORK=10.1.0.0/16\n")
    assert main(["docker-opts", *files]) == 1
    assert "lacks FLANNEL_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ" in capsys.readouterr().err
    assert not (tmp_path / "docker").exists()
