"""A kubeconfig's login command: whatever it prints or does, there is a token or one clear line."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from flannel_udp.errors import RegistryError, UsageError
from flannel_udp.options import KubeOptions
from flannel_udp.registry.kube import client as kube_client
from flannel_udp.registry.kube import login
from flannel_udp.registry.kube.options import open_http
from tests.kube_api.server import ApiServer, Fault
from tests.support.kube_clients import Opened
from tests.support.patience import PATIENCE_S

V1, V1BETA1 = "client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1"
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
GOOD = json.dumps({"kind": "ExecCredential", "status": {"token": "good"}})


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with ApiServer() as api:
        api.add_node("h1", "10.1.1.0/24")
        api.tokens = {"good": "flannel"}
        yield api


Login = Callable[..., KubeOptions]


@pytest.fixture
def login_by(api: ApiServer, tmp_path: Path) -> Login:
    """Make a kubeconfig whose login command is a shell script."""

    def make(script: str, version: str = V1BETA1, **more: object) -> KubeOptions:
        program = tmp_path / "log-in"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        command = {"apiVersion": version, "command": "./log-in", "interactiveMode": "Never", **more}
        document = {
            "current-context": "x",
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": api.url}}],
            "users": [{"name": "u", "user": {"exec": command}}],
        }
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(json.dumps(document))
        return KubeOptions(subnet_mgr=True, kubeconfig_file=kubeconfig)

    return make


@pytest.mark.parametrize("version", [V1, V1BETA1])
async def test_the_command_is_told_what_is_asked_for_and_its_token_is_used(
    version: str, login_by: Login, opened: Opened, tmp_path: Path
) -> None:
    script = f'echo "$KUBERNETES_EXEC_INFO" > {tmp_path}/asked; echo "$1 $HELLO" >> {tmp_path}/asked; echo \'{GOOD}\''
    client = opened(login_by(script, version, args=["first"], env=[{"name": "HELLO", "value": "world"}]))
    assert (await client.get_node("h1")).name == "h1"
    asked, words = (tmp_path / "asked").read_text().splitlines()
    assert json.loads(asked) == {"kind": "ExecCredential", "apiVersion": version, "spec": {"interactive": False}}
    assert words == "first world"


async def test_the_command_runs_once_and_again_when_its_token_is_refused(
    api: ApiServer, login_by: Login, opened: Opened, tmp_path: Path
) -> None:
    client = opened(login_by(f"echo x >> {tmp_path}/runs; cat {tmp_path}/printed"))
    (tmp_path / "printed").write_text(GOOD)
    for _ in range(2):
        await client.get_node("h1")
    api.tokens = {"better": "flannel"}
    (tmp_path / "printed").write_text(GOOD.replace("good", "better"))
    await client.get_node("h1")
    assert (tmp_path / "runs").read_text().split() == ["x", "x"]


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("", "printed no ExecCredential with a status"),
        ("echo Log in at https://geheim", "printed no ExecCredential with a status"),
        ("echo 7", "printed no ExecCredential with a status"),
        ("echo '[]'", "printed no ExecCredential with a status"),
        ("echo '{}'", "printed no ExecCredential with a status"),
        ("echo '{\"status\": null}'", "printed no ExecCredential with a status"),
        ("head -c 100000 /dev/zero | tr '\\0' '['", "printed no ExecCredential with a status"),
        ("printf '\\377\\376'", "printed no ExecCredential with a status"),
        ("echo '{\"status\": {}}'", "printed no token"),
        ('echo \'{"status": {"token": null}}\'', "printed no token"),
        ('echo \'{"status": {"token": ["geheim"]}}\'', "printed no token"),
        ('echo \'{"status": {"token": "geheim\\\\nX: y"}}\'', "printed no token"),
        (
            'echo \'{"status": {"clientCertificateData": "geheim", "clientKeyData": "geheim"}}\'',
            "printed no token, but a client certificate, which we do not take",
        ),
        ("echo 'no such profile' >&2; exit 3", "returned 3: no such profile"),
    ],
)
async def test_a_command_that_gives_no_token_is_one_line_that_tells_no_secret(
    script: str, says: str, login_by: Login, opened: Opened
) -> None:
    client = opened(login_by(script))
    with pytest.raises(RegistryError) as caught:
        await client.get_node("h1")
    assert str(caught.value).endswith(
        f"no credentials to GET /api/v1/nodes/h1: the kubeconfig's login command ./log-in {says}"
    )
    with pytest.raises(RegistryError, match="no credentials to watch nodes: the kubeconfig's login command"):
        await anext(client.watch_nodes("1"))


async def test_a_command_that_is_not_there_is_one_line(login_by: Login, opened: Opened, tmp_path: Path) -> None:
    client = opened(login_by(""))
    (tmp_path / "log-in").unlink()
    with pytest.raises(RegistryError, match=r"login command \./log-in cannot be run: No such file or directory$"):
        await client.get_node("h1")


def pipes() -> list[str]:
    links = (str(each.readlink()) for each in Path("/proc/self/fd").iterdir() if each.is_symlink())
    return [link for link in links if link.startswith("pipe:")]


async def test_a_command_may_leave_something_running_in_the_background(
    login_by: Login, opened: Opened, tmp_path: Path
) -> None:
    client = opened(login_by(f"sleep 1000 </dev/null >/dev/null 2>&1 & echo $! >{tmp_path}/pid; echo '{GOOD}'"))
    before = len(pipes())
    assert (await client.get_node("h1")).name == "h1"
    assert len(pipes()) <= before
    pid = int((tmp_path / "pid").read_text())
    os.kill(pid, signal.SIGKILL)  # it was there


@pytest.fixture
def as_process_1() -> Iterator[None]:
    """Have orphans for children, as the first process of a container has."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    yield
    libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "gone"


async def wait_for_state(pid: int, state: str) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while state_of(pid) != state:
        assert time.monotonic() < until_s
        await asyncio.sleep(0.01)


@pytest.mark.usefixtures("as_process_1")
async def test_what_a_command_leaves_running_is_no_zombie_for_ever(
    api: ApiServer, login_by: Login, opened: Opened, tmp_path: Path
) -> None:
    left = "sleep 1000 </dev/null >/dev/null 2>&1 & echo $! >>"
    client = opened(login_by(f"{left}{tmp_path}/pids; true & echo '{GOOD}'"))
    assert (await client.get_node("h1")).name == "h1"
    pids = (tmp_path / "pids").read_text().split()
    os.kill(int(pids[0]), signal.SIGKILL)
    await wait_for_state(int(pids[0]), "Z")
    api.tokens = {"better": "flannel"}
    with pytest.raises(RegistryError, match="not logged in"):  # the command was run again
        await client.get_node("h1")
    assert state_of(int(pids[0])) == "gone"
    last = int((tmp_path / "pids").read_text().split()[1])
    os.kill(last, signal.SIGKILL)
    await wait_for_state(last, "Z")
    os.waitpid(last, 0)


async def test_the_command_is_told_none_of_our_settings(
    login_by: Login, opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLANNELD_ETCD_PASSWORD", "geheim")
    await opened(login_by(f"env >{tmp_path}/told; echo '{GOOD}'")).get_node("h1")
    assert "geheim" not in (tmp_path / "told").read_text()


async def test_a_command_that_hangs_is_ended_with_what_it_started_and_named(
    login_by: Login, opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = opened(login_by(f"sleep 1000 & echo $! > {tmp_path}/pid; wait"))
    started = tmp_path / "pid"
    started.touch()
    for login_s in (2, 10, 30, 60):  # a busy machine may not come to start anything so soon
        monkeypatch.setattr(login, "LOGIN_S", float(login_s))
        with pytest.raises(RegistryError, match=rf"login command \./log-in is not done after {login_s} s"):
            await anext(client.watch_nodes("1"))
        if started.read_text():
            break
    pid = int(started.read_text())
    until_s = time.monotonic() + PATIENCE_S
    while state_of(pid) not in ("Z", "gone"):
        assert time.monotonic() < until_s
        await asyncio.sleep(0.01)


async def test_a_watch_that_the_server_does_not_begin_is_given_up(
    api: ApiServer, login_by: Login, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = opened(login_by(f"echo '{GOOD}'"))
    await client.get_node("h1")  # the login has its own time
    monkeypatch.setattr(kube_client, "ANSWER_TIMEOUT_S", 10.0)
    async with aclosing(client.watch_nodes("1001")) as events:  # one that stands is not: it goes on for longer
        assert (await anext(events)).node is None
        asyncio.get_running_loop().call_later(12.0, api.add_node, "h2")
        event = await anext(events)
        assert event.node is not None
        assert event.node.name == "h2"
    monkeypatch.setattr(kube_client, "ANSWER_TIMEOUT_S", 0.2)
    api.order("watch", Fault(wait_s=PATIENCE_S))
    with pytest.raises(RegistryError, match=r"watch nodes: no complete answer within 0\.2 s"):
        await anext(client.watch_nodes("1000"))


def test_a_version_that_we_do_not_know_is_named(login_by: Login) -> None:
    with pytest.raises(
        UsageError, match=r"the login command's apiVersion 'client\.authentication\.k8s\.io/v2' is none of"
    ):
        open_http(login_by("", "client.authentication.k8s.io/v2"))
