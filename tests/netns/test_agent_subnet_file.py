"""subnet.env under a running agent: removed, overwritten, its folder gone, its disk full, another agent's."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flannel_udp.errors import FlannelError
from flannel_udp.files import subnet_env
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import Plan
from tests.support.agents import Agent, in_mounts_of, wait_for
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.standstill import frozen

pytestmark = NEEDS_NETNS

FOREIGN = "FLANNEL_NETWORK=10.9.0.0/16\nFLANNEL_SUBNET=10.9.4.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"


@pytest.fixture
def host() -> Iterator[Host]:
    with Lab(Plan(fresh_name(), hosts=1, pods=0, agents=())) as lab:
        yield lab.hosts[0]


def is_ready(host: Host) -> bool:
    """Ask the agent: the file that the lab would look at is not where these agents have it."""
    try:
        return bool(host.control("/v1/status")["ready"])
    except (OSError, FlannelError):
        return False


def repairs(host: Host) -> int:
    status: Any = host.control("/v1/status")
    return int(status["host_repairs"]["subnet_env"])


def counted(host: Host, n: int) -> bool:
    return repairs(host) == n


def remove(path: Path) -> None:
    path.unlink()


def overwrite(path: Path) -> None:
    path.write_text(FOREIGN)


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_text(FOREIGN)
    other.replace(path)


def empty(path: Path) -> None:
    path.write_text("")


def rename(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))


def remove_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


def rename_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("former"))


def link_it(path: Path) -> None:
    """Have the file elsewhere, behind a link: what a later repair must leave."""
    target = path.parent.with_name("target")
    target.mkdir(exist_ok=True)
    path.unlink()
    path.symlink_to(target / "subnet.env")


CHANGES = [remove, overwrite, replace, empty, rename, remove_folder, rename_folder, link_it, remove, overwrite]


def test_whatever_becomes_of_it_it_is_put_back_and_counted(host: Host, tmp_path: Path) -> None:
    """Ten times in a row, the link of the eighth being followed by the last ones."""
    path = tmp_path / "flannel" / "subnet.env"
    with Agent(host, f"--subnet-file={path}") as agent:
        wait_for("ready", lambda: is_ready(host))
        env = subnet_env.read(path)
        assert env is not None
        began_s = time.monotonic()
        for n, change in enumerate(CHANGES, start=1):
            with frozen(agent.process.pid):  # or it puts back what stands in the way of the change's second step
                change(path)
            wait_for(f"right again after {change.__name__}", lambda: _holds(path, env))
            wait_for(f"counted after {change.__name__}", partial(counted, host, n))
            assert is_ready(host)
        assert path.parent.stat().st_mode & 0o777 == 0o755
        assert path.stat().st_mode & 0o777 == 0o644
        said = [line for line in agent.said() if line.startswith("put right: ")]
        assert said[0] == f"put right: {path}, which was gone"
        assert len(said) <= 1 + (time.monotonic() - began_s) // 60  # one a minute, not one for each
        assert agent.stop() == 0
    assert _holds(path, env)  # for the next run, and for the pods that go on
    assert [entry.name for entry in path.parent.iterdir() if entry.name.endswith(".lock")] == []


def test_a_link_stays_a_link(host: Host, tmp_path: Path) -> None:
    path, target = tmp_path / "subnet.env", tmp_path / "etc" / "flannel.env"
    path.symlink_to(target)
    with Agent(host, f"--subnet-file={path}"):
        wait_for("ready", lambda: is_ready(host))
        env = subnet_env.read(target)
        assert env is not None
        for change in (remove, overwrite):
            change(target)
            wait_for("right again", lambda: _holds(target, env))
        assert path.is_symlink()


def _holds(path: Path, env: subnet_env.SubnetEnv) -> bool:
    try:
        return subnet_env.read(path) == env
    except subnet_env.SubnetEnvError:
        return False


def in_agents_mounts(agent: Agent, *command: str) -> None:
    agent.host.run([*in_mounts_of(agent), *command])


FULL: dict[str, tuple[Callable[[Path], tuple[str, ...]], Callable[[Path], tuple[str, ...]], str]] = {
    "full": (
        lambda disk: ("sh", "-c", f"dd if=/dev/zero of={disk}/ballast bs=4k 2>/dev/null; true"),
        lambda disk: ("rm", f"{disk}/ballast"),
        "No space left on device",
    ),
    "read-only": (
        lambda disk: ("mount", "-o", "remount,ro", str(disk)),
        lambda disk: ("mount", "-o", "remount,rw", str(disk)),
        "Read-only file system",
    ),
}


@pytest.mark.parametrize("fault", FULL)
def test_a_disk_that_takes_nothing_is_waited_for_at_start_and_later(host: Host, tmp_path: Path, fault: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    break_it, mend, words = FULL[fault]
    path = disk / "subnet.env"
    script = f'mount -t tmpfs -o size=64k none {disk} && {" ".join(_quoted(break_it(disk)))}; exec "$@"'
    with Agent(host, f"--subnet-file={path}", wrapper=("sh", "-c", script, "sh")) as agent:
        line = agent.wait_for_line("not ready: cannot write")
        assert line == f"not ready: cannot write {path}: {words} (trying again every 1 s)"
        assert host.control("/v1/status")["state"] == f"cannot write {path}: {words}"
        assert not is_ready(host)
        in_agents_mounts(agent, *mend(disk))
        wait_for("ready", lambda: is_ready(host))
        # At run time: whoever removes the file, and then nobody can write it; nor does anybody just then.
        with frozen(agent.process.pid):
            if fault == "full":
                fill = f"dd if=/dev/zero of={disk}/ballast bs=1 count=100k"
                in_agents_mounts(agent, "sh", "-c", f"rm {path}; {fill}; true")
            else:
                in_agents_mounts(agent, "sh", "-c", f"rm {path}; mount -o remount,ro {disk}")
        wait_for("not ready", lambda: not is_ready(host))
        in_agents_mounts(agent, "sh", "-c", f"rm -f {disk}/ballast; mount -o remount,rw {disk}")
        wait_for("right again", lambda: is_ready(host) and repairs(host) == 1)
        assert agent.stop() == 0


def _quoted(words: tuple[str, ...]) -> list[str]:
    return [f"'{word}'" for word in words]


def test_two_agents_do_not_fight_for_one_file(host: Host, tmp_path: Path) -> None:
    """The second one says so and is not ready; when the first one ends it has the file."""
    path, other_registry = tmp_path / "subnet.env", tmp_path / "registry.json"
    config = '{"config": {"Network": "10.99.0.0/16", "Backend": {"Type": "alloc"}}, "subnets": {}}'
    other_registry.write_text(config)
    with Agent(host, f"--subnet-file={path}") as first:
        wait_for("ready", lambda: is_ready(host))
        ours = path.read_text()
        second_flags = (f"--registry=file:{other_registry}", f"--control-socket={tmp_path}/second.sock")
        with Agent(host, *second_flags, f"--subnet-file={path}", "--iptables-forward-rules=false") as second:
            line = second.wait_for_line("not ready: another agent")
            subnet = subnet_env.require(path).subnet
            assert line == (
                f"not ready: another agent (process {first.process.pid}) keeps {path}, and it said subnet {subnet} of "
                "10.244.0.0/16: give this one another --subnet-file (trying again every 1 s)"
            )
            assert path.read_text() == ours
            assert repairs(host) == 0
            assert is_ready(host)
            first.stop()
            wait_for("the second one's", lambda: "10.99.0.0/16" in path.read_text())
            assert second.stop() == 0
