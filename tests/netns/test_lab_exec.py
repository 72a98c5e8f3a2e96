"""`lab exec`: a command in a host or a pod is on a machine of its own, and our own commands find the host's agent."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flannel_udp.lab.inside import hosts_text, names_from_files_only
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.plan import Plan
from tests.support.labs import NEEDS_NETNS, cleaned_up, fresh_name, state_of
from tests.support.patience import PATIENCE_S

pytestmark = NEEDS_NETNS

OURS = [sys.executable, "-m", "flannel_udp"]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two hosts with our agent, one pod each; no test changes it."""
    with Lab(Plan(fresh_name(), registry="etcd")) as lab:
        yield lab


def in_lab(lab: Lab, node: str, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*OURS, "lab", "exec", "--name", lab.name, node, "--", *command],
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
        env=os.environ | env,
    )


def test_our_commands_find_the_agent_of_the_host_without_an_option(lab: Lab) -> None:
    for host in lab.hosts:
        done = in_lab(lab, host.name, *OURS, "status", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["subnet"] == str(host.subnet)
    other = lab.host("h2").subnet
    assert str(other) in in_lab(lab, "h1", *OURS, "peers").stdout
    assert other is not None
    assert json.loads(in_lab(lab, "h1", *OURS, "route", "get", str(other[2]), "--json").stdout)


def test_our_commands_find_registry_and_subnet_file_too(lab: Lab) -> None:
    assert in_lab(lab, "h1", *OURS, "config", "get").stdout == '{"Network":"10.244.0.0/16"}\n'
    assert "10.244.0.0/16" in in_lab(lab, "h1", *OURS, "firewall", "show").stdout
    assert str(lab.host("h2").subnet) in in_lab(lab, "net", *OURS, "lease", "list").stdout


def test_the_doctor_of_a_host_needs_no_option(lab: Lab) -> None:
    asked = {row["question"]: row for row in json.loads(in_lab(lab, "h1", *OURS, "doctor", "--json").stdout)}
    for question in ("UDP port", "interface", "subnet file"):
        assert asked[question]["ok"] is True, asked[question]


def test_the_machines_own_agent_is_never_meant(lab: Lab) -> None:
    done = in_lab(lab, "h1", *OURS, "status", "--json", FLANNELD_CONTROL_SOCKET="/nowhere")
    assert json.loads(done.stdout)["subnet"] == str(lab.host("h1").subnet)
    pod = in_lab(lab, "h1/p1", *OURS, "status")
    assert pod.returncode == 1
    assert f"nothing answers on {state_of(lab.name)}/h1/p1/" in pod.stderr


def test_the_command_flannel_udp_is_found_where_this_one_is_from(lab: Lab) -> None:
    done = in_lab(lab, "h1", "sh", "-c", "echo $PATH", PATH="/usr/sbin:/usr/bin")
    first, _, last = done.stdout.strip().rpartition(":")
    assert first == "/usr/sbin:/usr/bin:/usr/local/sbin:/sbin"
    assert Path(last).samefile(Path(sys.executable).parent)


@pytest.mark.parametrize(("node", "name"), [("h1", "h2"), ("h1/p1", "h2-p1"), ("h2", "h1-p1"), ("h1", "net")])
def test_the_others_are_found_by_their_names(lab: Lab, node: str, name: str) -> None:
    done = in_lab(lab, node, "ping", "-c", "3", "-i", "0.2", "-W", "60", name)
    assert done.returncode == 0, done.stdout + done.stderr


def machine_side(lab: Lab) -> tuple[bytes, str, list[Path]]:
    """Return what a command's own names could have changed: the machine's names, and the lab's folder."""
    return Path("/etc/hosts").read_bytes(), os.uname().nodename, sorted(state_of(lab.name).iterdir())


def test_the_names_are_those_of_the_lab_and_cost_the_machine_nothing(lab: Lab) -> None:
    before = machine_side(lab)
    assert in_lab(lab, "h1", "cat", "/etc/hosts").stdout.splitlines() == [
        "127.0.0.1 localhost",
        "::1 localhost ip6-localhost ip6-loopback",
        "192.0.2.254 net etcd",
        "192.0.2.1 h1",
        "192.0.2.2 h2",
        f"{lab.host('h1').pod('p1').ip} h1-p1",
        f"{lab.host('h2').pod('p1').ip} h2-p1",
    ]
    assert machine_side(lab) == before


def test_both_families_have_their_names() -> None:
    plan = Plan(fresh_name(), hosts=1, pods=0, families="46")
    assert hosts_text(Lab(plan)).splitlines()[2:] == [
        "192.0.2.254 net",
        "192.0.2.1 h1",
        "2001:db8::fe net",
        "2001:db8::1 h1",
    ]


def test_a_name_that_nobody_has_is_refused_without_asking_a_server(lab: Lab) -> None:
    done = in_lab(lab, "h1", "getent", "hosts", "h22.example.org")
    assert (done.returncode, done.stdout) == (2, "")
    asked = "passwd: files sss\nhosts:  resolve [!UNAVAIL=return] files dns\n#hosts: x\n"
    assert names_from_files_only(asked) == "passwd: files sss\nhosts: files\n#hosts: x\n"


def test_host_name_prompt_and_interfaces_are_the_nodes_own(lab: Lab) -> None:
    assert in_lab(lab, "h1/p1", "hostname").stdout == "h1-p1\n"
    assert in_lab(lab, "h2", "bash", "--norc", "-c", r"PS1='\h'; echo ${PS1@P}").stdout == "h2\n"
    assert in_lab(lab, "h1/p1", "ls", "/sys/class/net").stdout.split() == ["eth0", "lo"]


@pytest.mark.parametrize("words", [("sh", "-c", "exit 7"), ("--", "sh", "-c", "exit 7")])
def test_what_follows_the_host_is_the_commands_own(lab: Lab, words: tuple[str, ...]) -> None:
    done = subprocess.run([*OURS, "lab", "exec", "--name", lab.name, "h1", *words], timeout=2 * PATIENCE_S, check=False)
    assert done.returncode == 7


def test_a_command_that_is_not_there_is_127_and_one_that_cannot_run_126(lab: Lab, tmp_path: Path) -> None:
    for command in ("nosuch", "/nosuch", "/etc/hosts/x"):
        done = in_lab(lab, "h1", command)
        assert (done.returncode, done.stderr) == (127, f"flannel-udp: h1: there is no command {command}\n")
    plain = tmp_path / "plain"
    plain.write_text("true\n")
    for path, why in ((plain, "Permission denied"), (tmp_path, "Permission denied")):
        done = in_lab(lab, "h1/p1", str(path))
        assert (done.returncode, done.stderr) == (126, f"flannel-udp: h1/p1: cannot run {path}: {why}\n")
    plain.chmod(0o755)
    assert in_lab(lab, "h1", str(plain)).returncode == 126


def test_a_command_whose_reader_has_gone_ends_without_a_word(lab: Lab) -> None:
    done = in_lab(lab, "h1", "sh", "-c", "yes | head -n 1; yes | head -n 1")
    assert (done.stdout, done.stderr) == ("y\ny\n", "")


def test_a_command_has_the_terminal(lab: Lab) -> None:
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            [*OURS, "lab", "exec", "--name", lab.name, "h1", "tty"],
            stdin=theirs,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE_S,
            check=False,
        )
        assert done.stdout.startswith("/dev/pts/"), done.stdout + done.stderr
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_lab_that_goes_meanwhile_is_one_line() -> None:
    with cleaned_up(Lab(Plan(fresh_name(), hosts=1, pods=0, agents=()))) as lab:
        lab.up()
        code = (
            "import sys; from flannel_udp.cli.main import main; from flannel_udp.lab import inside, lab\n"
            "call = inside.hosts_text\n"
            "inside.hosts_text = lambda it: (call(it), lab.remove(it.name))[0]\n"
            "sys.exit(main(sys.argv[1:]))"
        )
        words = [sys.executable, "-c", code, "lab", "exec", "--name", lab.name, "h1", "true"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False)
        assert done.returncode == 1
        assert f"no lab named {lab.name} is up" in done.stderr.splitlines()[-1]
