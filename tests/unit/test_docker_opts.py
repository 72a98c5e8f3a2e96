"""Docker's options: what flannel's script writes, byte for byte, by our command and by the script of its name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flannel_udp.cli.main import main
from tests.support.patience import PATIENCE_S

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
    subprocess.run(["sh", SCRIPT, *files, *flags], check=True, timeout=PATIENCE_S, env=env)
    assert (tmp_path / "docker").read_text() == text


def test_the_environment_says_where_the_agents_file_is_as_for_the_agent(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLANNELD_SUBNET_FILE", files[1])
    assert main(["docker-opts", *files[2:]]) == 0
    assert (tmp_path / "docker").read_text() == INDIVIDUAL + COMBINED
    monkeypatch.setenv("FLANNELD_SUBNET_FILE", str(tmp_path / "none"))
    assert main(["docker-opts", *files]) == 0


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


def load(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    """Have the environment that a unit with this EnvironmentFile= has."""
    for line in file.read_text().splitlines():
        name, _, value = line.partition("=")
        monkeypatch.setenv(name, value.strip('"'))


@pytest.mark.parametrize("flags", [[], ["-i"], ["-c"], ["-c", "-k", "NET_OPTS"], ["-m"]], ids=" ".join)
@pytest.mark.parametrize(
    "users", [{}, {"DOCKER_OPTS": "--debug", "NET_OPTS": "--debug", "DOCKER_OPT_DNS": "--dns=192.0.2.53"}]
)
def test_its_own_output_in_the_environment_changes_nothing(
    files: list[str],
    tmp_path: Path,
    *,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    users: dict[str, str],
) -> None:
    for name, value in users.items():
        monkeypatch.setenv(name, value)
    texts = []
    for _ in range(3):
        assert main(["docker-opts", *files, *flags]) == 0
        texts.append((tmp_path / "docker").read_text())
        load(monkeypatch, tmp_path / "docker")
    assert texts == texts[:1] * 3
    # Another subnet, another masquerade: what was written for the former ones goes.
    env = tmp_path / "subnet.env"
    env.write_text(env.read_text().replace("10.1.15.1", "10.1.99.1").replace("IPMASQ=false", "IPMASQ=true"))
    assert main(["docker-opts", *files, *flags]) == 0
    text = (tmp_path / "docker").read_text()
    assert text == texts[0].replace("10.1.15.1", "10.1.99.1").replace("--ip-masq=true", "--ip-masq=false")
    assert capsys.readouterr().err == ""


def test_an_old_docker_is_not_given_what_an_earlier_run_wrote(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["docker-opts", *files]) == 0
    load(monkeypatch, tmp_path / "docker")
    assert main(["docker-opts", *files, "-m"]) == 0
    assert "ip-masq" not in (tmp_path / "docker").read_text()


@pytest.mark.parametrize(
    ("users", "rest", "said"),
    [
        ("--debug --bip=172.17.0.1/16", "--debug", f"--bip=172.17.0.1/16 in the environment: {BIP} is written instead"),
        (
            "--bip 172.17.0.1/16 --debug",
            " --debug",
            f"--bip 172.17.0.1/16 in the environment: {BIP} is written instead",
        ),
        ("--mtu=9000", "", f"--mtu=9000 in the environment: {MTU} is written instead"),
        ("--ip-masq=false", "", f"--ip-masq=false in the environment: {MASQ} is written instead"),
        ("-b br0", "-b br0", "--bridge br0 in the environment: Docker takes no --bip beside it"),
        ("--bip-like=1 --debug", "--bip-like=1 --debug", None),
    ],
)
def test_the_users_own_contradiction_is_said_and_never_written_beside_ours(
    files: list[str],
    tmp_path: Path,
    *,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    users: str,
    rest: str,
    said: str | None,
) -> None:
    monkeypatch.setenv("DOCKER_OPTS", users)
    assert main(["docker-opts", *files, "-c"]) == 0
    before = f"{rest} " if rest else ""
    assert (tmp_path / "docker").read_text() == f'DOCKER_OPTS="{before} {BIP} {MASQ} {MTU}"\n'
    expected = f"flannel-udp: warning: DOCKER_OPTS has {said}\n" if said else ""
    assert capsys.readouterr().err == expected


V6_KEYS = "FLANNEL_IPV6_NETWORK=fd00:1::/48\nFLANNEL_IPV6_SUBNET=fd00:1:0:2::1/64\n"


@pytest.mark.parametrize(("flags", "text"), CASES)
def test_dual_stack_is_written_as_flannels_script_does_which_knows_nothing_of_ipv6(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], text: str
) -> None:
    env = tmp_path / "subnet.env"
    env.write_text(env.read_text() + V6_KEYS)
    assert main(["docker-opts", *files, *flags]) == 0
    assert (tmp_path / "docker").read_text() == text
    assert capsys.readouterr().err == ""


def test_without_an_ipv4_subnet_no_bip_is_written_and_people_are_told(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["docker-opts", *files]) == 0
    load(monkeypatch, tmp_path / "docker")
    (tmp_path / "subnet.env").write_text(f"{V6_KEYS}FLANNEL_MTU=1452\nFLANNEL_IPMASQ=false\n")
    assert main(["docker-opts", *files]) == 0
    assert (tmp_path / "docker").read_text() == (
        'DOCKER_OPT_IPMASQ="--ip-masq=true"\nDOCKER_OPT_MTU="--mtu=1452"\nDOCKER_OPTS=" --ip-masq=true --mtu=1452"\n'
    )
    assert capsys.readouterr().err == (
        "flannel-udp: warning: this host has no IPv4 subnet, so no --bip is written: "
        "give Docker --ipv6 --fixed-cidr-v6=fd00:1:0:2::/64 yourself\n"
    )


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
