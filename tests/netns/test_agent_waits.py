"""What the world may still bring is waited for, and one line says for what: no restart by hand, no exit code."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from flannel_udp.files.atomic import replace_file
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import Plan
from tests.registry.certificates import make_authority, make_certificate
from tests.support.agents import Agent, command_line, in_mounts_of, remains_of, wait_for
from tests.support.labs import NEEDS_NETNS, fresh_name

pytestmark = NEEDS_NETNS

AGAIN = " (trying again every 1 to 5 s)"
OPENING = "opening the registry failed: "


@pytest.fixture
def host() -> Iterator[Host]:
    with Lab(Plan(fresh_name(), hosts=1, agents=())) as lab:
        yield lab.hosts[0]


# Files that flags name


def goes_on_when(
    host: Host,
    mend: Callable[[], object],
    line: str,
    *arguments: str,
    wrapper: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> None:
    """See an agent wait with this one line until the file is put right, and then ask the registry, which is away.

    `mend` does so at once: of half a file there would be another line.
    """
    with Agent(host, *arguments, wrapper=wrapper, environment=environment) as agent:
        assert agent.wait_for_line(OPENING) == f"{OPENING}{line}{AGAIN}"
        assert host.control("/v1/status")["state"] == "waiting for the registry's files"
        mend()
        agent.wait_for_line("opening the registry: works now")
        agent.wait_for_line("reading the network configuration failed: ")
        assert len([each for each in agent.said() if each.startswith(OPENING)]) == 1
        assert agent.stop() == 0
    assert remains_of(host) == set()


def etcd(host: Host, *arguments: str, scheme: str = "https") -> tuple[str, ...]:
    """Return the flags for an etcd that is not there."""
    return ("--registry=etcd", f"--etcd-endpoints={scheme}://{host.underlay}:2379", *arguments)


@pytest.mark.parametrize(
    ("text", "why"), [(None, ": No such file or directory"), ("half of i", ": holds no certificate in PEM form")]
)
def test_an_authority_that_is_not_there_yet(host: Host, tmp_path: Path, text: str | None, why: str) -> None:
    ca = tmp_path / "ca.pem"
    if text is not None:
        ca.write_text(text)
    authority = make_authority(tmp_path, "authority").certfile
    goes_on_when(
        host,
        lambda: replace_file(ca, authority.read_bytes()),
        f"--etcd-cafile {ca}{why}",
        *etcd(host, f"--etcd-cafile={ca}"),
    )


def test_an_authority_that_may_not_be_read_yet(host: Host, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    ca = make_authority(tmp_path, "authority").certfile
    ca.chmod(0o600)
    # Root without the right to override permissions, and not the file's owner.
    os.chown(ca, 12_345, 12_345)
    drop = "-dac_override,-dac_read_search"
    goes_on_when(
        host,
        lambda: ca.chmod(0o644),
        f"--etcd-cafile {ca}: Permission denied",
        *etcd(host, f"--etcd-cafile={ca}"),
        wrapper=("setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}"),
    )


def test_a_certificate_whose_key_is_another_ones_yet(host: Host, tmp_path: Path) -> None:
    authority = make_authority(tmp_path, "authority")
    old, new = (make_certificate(tmp_path, name, authority, "DNS:agent") for name in ("old", "new"))
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    shutil.copy(new.certfile, certificate)
    shutil.copy(old.keyfile, key)
    goes_on_when(
        host,
        lambda: replace_file(key, new.keyfile.read_bytes()),
        f"--etcd-certfile {certificate} and --etcd-keyfile {key}: "
        "not a certificate and its unencrypted key in PEM form",
        *etcd(host, f"--etcd-certfile={certificate}", f"--etcd-keyfile={key}"),
    )


@pytest.mark.parametrize(("text", "why"), [(None, "cannot read '{}': No such file or directory"), ("", "{} holds no")])
@pytest.mark.parametrize("by", ["flag", "environment"])
def test_a_password_that_is_not_there_yet(host: Host, tmp_path: Path, by: str, text: str | None, why: str) -> None:
    file = tmp_path / "password"
    if text is not None:
        file.write_text(text)
    flags = [f"--etcd-password-file={file}"] if by == "flag" else []
    environment = {} if by == "flag" else {"FLANNELD_ETCD_PASSWORD_FILE": str(file)}
    line = f"--etcd-password-file: {why.format(file)}"
    line += "" if text is None else " password: it must be one line"
    goes_on_when(
        host,
        lambda: replace_file(file, b"tell-nobody\n"),
        line,
        *etcd(host, "--etcd-username=me", *flags, scheme="http"),
        environment=environment,
    )


def test_a_kubeconfig_that_is_not_there_yet(host: Host, tmp_path: Path) -> None:
    file = tmp_path / "kubeconfig"
    text = "apiVersion: v1\nkind: Config\ncurrent-context: c\n"
    text += "contexts: [{name: c, context: {cluster: c, user: u}}]\nusers: [{name: u, user: {}}]\n"
    text += f"clusters: [{{name: c, cluster: {{server: 'http://{host.underlay}:6443'}}}}]\n"
    goes_on_when(
        host,
        lambda: replace_file(file, text.encode()),
        f"--kubeconfig-file {file}: Configuration file {file} not found",
        "--kube-subnet-mgr",
        f"--kubeconfig-file={file}",
        f"--net-config-path={tmp_path}/none",
        environment={"NODE_NAME": "n1"},
    )


def test_what_the_command_line_alone_gets_wrong_is_not_waited_for(host: Host) -> None:
    with Agent(host, *etcd(host, "--etcd-certfile=/nonexistent")) as agent:
        assert agent.exit_code() == 2
        assert agent.said()[-1] == (
            "flannel-udp: --etcd-certfile and --etcd-keyfile belong together: give both or neither"
        )


# Places for its own files


def mounted(*commands: str) -> tuple[str, ...]:
    """Return what runs the agent in a mount namespace in which these commands were run."""
    return ("unshare", "--mount", "sh", "-c", f'{" && ".join(commands)} && exec "$@"', "sh")


def test_a_run_that_cannot_be_written_yet(host: Host) -> None:
    path = host.state / "run" / "agent.sock"
    read_only = mounted(f"mount --bind {host.state} {host.state}", f"mount -o remount,ro,bind {host.state}")
    with Agent(host, "--control-socket", str(path), wrapper=read_only) as agent:
        line = "making the control socket failed: "
        assert agent.wait_for_line(line) == (
            f"{line}cannot make the control socket {path}: Read-only file system{AGAIN}"
        )
        subprocess.run([*in_mounts_of(agent), "mount", "-o", "remount,rw,bind", str(host.state)], check=True)
        wait_for("it is ready", host.subnet_file.exists)
        assert path.is_socket()
        assert len([each for each in agent.said() if each.startswith(line)]) == 1
        assert agent.stop() == 0


def test_a_control_socket_that_can_never_be_made_is_one_line_and_sigterm_is_heard(host: Host) -> None:
    with Agent(host, "--control-socket=/proc/flannel-udp.sock") as agent:
        agent.wait_for_line("making the control socket failed: cannot make the control socket /proc/flannel-udp.sock: ")
        assert agent.stop() == 0
        assert agent.said()[-1] == "stopped"


# A port for probes


def answer_of(host: Host, path: str) -> str:
    ask = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).read().decode(), end='')"
    return host.run([sys.executable, "-c", ask, f"http://127.0.0.1:8080{path}"]).stdout


def test_a_health_port_that_another_program_has_stops_no_traffic_and_is_taken_once_it_is_free(host: Host) -> None:
    fault = "cannot serve health on 0.0.0.0 port 8080: Address already in use: choose another --healthz-ip or "
    fault += "--healthz-port"
    flag = "--healthz-port=8080"
    with host.socket(socket.AF_INET, socket.SOCK_STREAM) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("0.0.0.0", 8080))
        other.listen()
        with Agent(host, flag) as agent:
            agent.wait_for_line(f"answering probes failed: {fault}{AGAIN}")
            agent.wait_ready()
            assert host.control("/v1/status")["problems"] == [fault]
            with Agent(host, flag, "--takeover") as new:
                new.wait_for_line("took over from process")
                assert agent.exit_code() == 0
                new.wait_for_line(f"answering probes failed: {fault}{AGAIN}")
                other.close()
                new.wait_for_line("answering probes: works now")
                new.wait_ready()
                assert answer_of(host, "/healthz") == answer_of(host, "/readyz") == "ok\n"
                assert host.control("/v1/status")["problems"] == []
                assert len([line for line in new.said() if "cannot serve health" in line]) == 1
                assert new.stop() == 0


# An address


@pytest.mark.parametrize("backend", ["udp", "vxlan", "ipip"])
def test_an_address_that_the_kernel_does_not_deliver_to_us(backend: str) -> None:
    config = {"Network": "10.244.0.0/16", "Backend": {"Type": backend}}
    with Lab(Plan(fresh_name(), hosts=1, config=config, agents=())) as lab:
        (host,) = lab.hosts
        local, why = f"local {host.underlay} dev eth0 table local", f"the kernel takes no packets to {host.underlay}"
        host.configure(f"route del {local}")  # what a VRF does to who is outside of it
        with Agent(host, "--datapath=userspace") as agent:
            line = agent.wait_for_line("finding the external interface failed: ")
            assert line == (
                f"finding the external interface failed: {why} for this host: is eth0 in a VRF? "
                f"`ip route get {host.underlay}` shows it{AGAIN}"
            )
            assert host.control("/v1/status")["state"] == "waiting for the external interface"
            registry = f"--registry=file:{host.plan.registry_file}"
            assert f"FAULT interface: {why}" in command_line(host, "doctor", "--iface=eth0", registry).stdout
            host.configure(f"route add {local} proto kernel scope host src {host.underlay}")
            agent.wait_ready()
