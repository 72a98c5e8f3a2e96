"""What a running agent may still do, and what it never tells: looked up in /proc and in all that it prints."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import Plan
from tests.registry.certificates import make_authority
from tests.support.agents import Agent, command_line, wait_for
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import PATIENCE_S

pytestmark = NEEDS_NETNS

KEPT = 1 << 10 | 1 << 12 | 1 << 13  # CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_NET_RAW
DAC_OVERRIDE = 1 << 1
SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
SPOKEN = "correct-horse-battery"
PORT = 9501


@pytest.fixture(scope="module", params=["file", "etcd"])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    if request.param == "etcd":
        request.getfixturevalue("needs_etcd")
    with Lab(Plan(fresh_name(), hosts=1, registry=request.param, agents=())) as lab:
        yield lab.hosts[0]


def threads_of(pid: int) -> list[Mapping[str, str]]:
    """Return /proc/PID/task/*/status of every thread."""
    found: list[Mapping[str, str]] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # gRPC's come and go
            lines = (task / "status").read_text().splitlines()
            found.append(dict(line.split(":\t", 1) for line in lines if ":\t" in line))
    return found


def test_every_thread_has_the_few_capabilities_that_status_names(host: Host) -> None:
    with Agent(host) as agent:
        agent.wait_ready()
        threads = threads_of(agent.process.pid)
        assert len(threads) > 2  # the control loop, its thread pool, the data thread, gRPC's
        for thread in threads:
            assert {name: int(thread[name], 16) for name in SETS} == dict.fromkeys(SETS, KEPT), thread["Name"]
            assert thread["NoNewPrivs"] == "1"
        agent.wait_for_line(
            "kept CAP_NET_ADMIN, CAP_NET_RAW, CAP_NET_BIND_SERVICE and gave up all other capabilities; "
            "no_new_privs is set"
        )
        assert host.control("/v1/status")["capabilities"] == ["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_NET_BIND_SERVICE"]
        assert "CAP_NET_ADMIN, CAP_NET_RAW, CAP_NET_BIND_SERVICE" in command_line(host, "status").stdout
        assert agent.stop() == 0
    assert not host.control_socket.exists()


@pytest.mark.parametrize(
    "hiding",
    ["mount -t proc -o subset=pid proc /proc", "mount -t proc -o hidepid=2 proc /proc", "mount -t tmpfs - /sys"],
)
def test_where_proc_or_sys_is_hidden_it_runs_and_gives_up_as_much(hiding: str) -> None:
    """systemd's ProcSubset=pid and ProtectProc=, say."""
    wrapper = ("unshare", "--mount", "sh", "-c", f'{hiding} && exec "$@"', "sh")
    config = {"Network": "10.244.0.0/16", "EnableIPv6": True, "IPv6Network": "fd00:10:244::/48"}
    with (
        Lab(Plan(fresh_name(), hosts=1, families="46", config=config, agents=())) as lab,
        Agent(lab.hosts[0], wrapper=wrapper) as agent,
    ):
        agent.wait_ready()
        assert all(int(thread["CapBnd"], 16) == KEPT for thread in threads_of(agent.process.pid))
        assert lab.hosts[0].control("/v1/status")["problems"] == []
        registry = f"--registry=file:{lab.plan.registry_file}"
        asked = [sys.executable, "-m", "flannel_udp", "doctor", registry, "--control-socket=/nonexistent"]
        done = lab.hosts[0].run([*wrapper, *asked], check=False)
        assert (done.returncode, done.stderr) == (1, "")
        assert agent.stop() == 0


def test_without_proc_one_line_says_so() -> None:
    wrapper = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs - /proc && exec "$@"', "sh")
    with Lab(Plan(fresh_name(), hosts=1, agents=())) as lab, Agent(lab.hosts[0], wrapper=wrapper) as agent:
        assert agent.exit_code() == 1
        line = "flannel-udp: cannot read /proc/self/status: No such file or directory: is /proc mounted here?"
        assert agent.said() == [line]


def test_a_program_that_it_runs_has_the_same_ones_also_when_it_is_not_root() -> None:
    code = (
        "import subprocess; from flannel_udp.host.capabilities import drop_capabilities; "
        "drop_capabilities([]); subprocess.run(['cat', '/proc/self/status'])"
    )
    # The interpreter may live where only root can read, so this user may read everything until it drops that.
    caps = "+net_admin,+net_raw,+dac_read_search,+sys_ptrace"
    plain = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", f"--inh-caps=-all,{caps}")
    run = (*plain, f"--ambient-caps=-all,{caps}", sys.executable, "-c", code)
    with Lab(Plan(fresh_name(), hosts=1, agents=())) as lab:
        said = lab.hosts[0].run(run).stdout
    status = dict(line.split(":\t", 1) for line in said.splitlines() if ":\t" in line)
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 1 << 12 | 1 << 13


def test_a_file_of_another_user_costs_one_more_capability_and_is_named(tmp_path: Path) -> None:
    with Lab(Plan(fresh_name(), hosts=1, agents=())) as lab:
        host = lab.hosts[0]
        folder = tmp_path / "teacher"
        folder.mkdir(mode=0o755)
        registry = folder / "registry.json"
        registry.write_text(host.plan.registry_file.read_text())
        os.chown(folder, 12_345, 12_345)
        with Agent(host, f"--registry=file:{registry}") as agent:
            agent.wait_ready()
            agent.wait_for_line(f"CAP_DAC_OVERRIDE (for {folder}, which is another user's)")
            assert all(int(thread["CapEff"], 16) == KEPT | DAC_OVERRIDE for thread in threads_of(agent.process.pid))
            assert agent.stop() == 0


def get(host: Host, path: str) -> str:
    with host.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect(("127.0.0.1", PORT))
        sock.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        return b"".join(iter(lambda: sock.recv(65_536), b"")).decode()


@pytest.mark.parametrize("way", ["flag", "variable", "file"])
def test_password_and_key_are_told_nowhere(host: Host, tmp_path: Path, way: str) -> None:
    key = make_authority(tmp_path, "agent")
    password_file = tmp_path / "password"
    password_file.write_text(SPOKEN + "\n")
    arguments = {"flag": [f"--etcd-password={SPOKEN}"], "file": [f"--etcd-password-file={password_file}"]}
    environment = {"FLANNELD_ETCD_PASSWORD": SPOKEN} if way == "variable" else {}
    # TLS where etcd speaks plain text: every attempt fails, and failing is where things are told.
    https = f"--etcd-endpoints={host.plan.etcd_endpoint.replace('http:', 'https:')}"
    etcd = (https, f"--etcd-certfile={key.certfile}", f"--etcd-keyfile={key.keyfile}")
    tls = () if host.plan.registry == "file" else etcd
    flags = ("--v=9", f"--healthz-port={PORT}", "--etcd-username=root", *tls, *arguments.get(way, ()))
    with Agent(host, *flags, environment=environment) as agent:
        wait_for("it answers", host.control_socket.exists)
        agent.wait_for_line("reading the network configuration failed") if tls else agent.wait_ready()
        told = [*agent.said(), str(host.control("/v1/status")), get(host, "/metrics"), get(host, "/readyz")]
        told += [command_line(host, *words).stdout for words in (("status",), ("status", "--json"), ("peers",))]
        shown = Path(f"/proc/{agent.process.pid}/cmdline").read_text()
        agent.stop()
    assert (SPOKEN in shown) == (way == "flag")
    assert any("every user can read the password in /proc/" in line for line in told) == (way == "flag")
    secrets = [SPOKEN, *key.keyfile.read_text().splitlines()[1:-1]]
    assert [secret for secret in secrets if any(secret in text for text in [*told, *agent.said()])] == []
