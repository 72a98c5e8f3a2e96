"""What the agent makes for itself on the host: put back when gone, never over another's; not ready while that fails."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import Plan
from tests.support.agents import Agent, command_line, remains_of, wait_for
from tests.support.labs import NEEDS_NETNS, fresh_name

pytestmark = NEEDS_NETNS


@pytest.fixture
def host() -> Iterator[Host]:
    with Lab(Plan(fresh_name(), hosts=1, agents=())) as lab:
        yield lab.hosts[0]


def are_put_back(agent: Agent, times: int) -> bool:
    """Tell whether it has said so often that it has put a socket's file back."""
    return len([line for line in agent.said() if "which somebody had removed" in line]) == times


def is_said(host: Host, control: Path, times: int) -> bool:
    """Tell whether `status` says that, of an agent that is ready."""
    asking = [sys.executable, "-m", "flannel_udp", "status", "--json", "--control-socket", str(control)]
    text = host.run(asking, check=False).stdout
    return f'"control-socket": {times}' in text and '"ready": true' in text


def test_sockets_removed_with_their_folder_are_put_back_counted_and_answer(host: Host) -> None:
    folder = host.state / "run"
    control = folder / "agent.sock"
    with Agent(host, "--control-socket", str(control)) as agent:
        agent.wait_for_line("wrote ")
        for times in (1, 2):
            # In one go: what the agent puts back between two files would keep the folder from being removed.
            shutil.rmtree(folder.rename(folder.with_name("former")))
            wait_for("both are back", partial(are_put_back, agent, 2 * times))
            wait_for("it says so", partial(is_said, host, control, 2 * times))
        assert are_put_back(agent, 4)
        with Agent(host, "--control-socket", str(control), "--takeover") as new:
            new.wait_for_line(f"took over from process {agent.process.pid}")
            assert agent.exit_code() == 0
            assert new.stop() == 0
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("what", ["a socket that lives", "a file"])
def test_what_somebody_else_put_there_is_left_to_him_and_we_are_not_ready(host: Host, what: str) -> None:
    path = host.control_socket
    health = "--healthz-port=8080"
    with Agent(host, health) as agent, socket.socket(socket.AF_UNIX) as other:
        agent.wait_ready()
        theirs = path.with_name("theirs")  # is put there in one go: the agent would be as fast to a free place
        if what == "a file":
            theirs.write_text("precious")
            theirs.replace(path)
            agent.wait_for_line("exists and is not a socket: remove it or choose another --control-socket")
            assert path.read_text() == "precious"
        else:
            other.bind(str(theirs))
            other.listen()
            theirs.replace(path)
            agent.wait_for_line("not ready: another flannel-udp is running")
        assert "not ready: " in readyz(host)
        path.unlink()
        other.close()
        agent.wait_ready()
        wait_for("ready", lambda: readyz(host) == "ok\n")
        assert command_line(host, "status").returncode == 0
        assert agent.stop() == 0
    assert remains_of(host) == {"subnet.env"}


def readyz(host: Host) -> str:
    ask = "import sys, urllib.request, urllib.error\n"
    ask += "try: print(urllib.request.urlopen(sys.argv[1]).read().decode(), end='')"
    ask += "\nexcept urllib.error.HTTPError as error: print(error.read().decode(), end='')"
    return host.run([sys.executable, "-c", ask, "http://127.0.0.1:8080/readyz"]).stdout


def test_a_flannel0_that_another_program_has_open_is_left_to_it(host: Host) -> None:
    hold = "import pytun, sys\nd = pytun.TunTapDevice('flannel0', flags=pytun.IFF_TUN | pytun.IFF_NO_PI | 0x100)\n"
    hold += "print('held', flush=True)\nsys.stdin.read()"
    for flag in ("--workers=1", "--workers=2"):
        with host.popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            try:
                with Agent(host, flag) as agent:
                    agent.wait_ready()
                    assert host.control("/v1/status")["tunnel"]["name"] == "flannel1"
                    assert agent.stop() == 0
            finally:
                holder.communicate()
