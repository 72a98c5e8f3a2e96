"""What only one agent of a host may have: refused by name to the next one, and no stranger's to keep."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, Plan
from tests.support.agents import Agent, links_of, pid_of, remains_of, wait_for
from tests.support.kernel_state import ours_of
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import promised
from tests.support.standstill import freeze
from tests.support.vxlan_state import link_of

pytestmark = NEEDS_NETNS

NOBODY = 65534
OTHER: dict[str, Any] = {"Network": "10.7.0.0/16", "Backend": {"Type": "udp", "Port": 8286}}


@pytest.fixture
def host() -> Iterator[Host]:
    with Lab(Plan(fresh_name(), hosts=1, agents=())) as lab:
        yield lab.hosts[0]


def own_files(host: Host) -> list[str]:
    return ["--control-socket", str(host.state / "b.sock"), "--subnet-file", str(host.state / "b.env")]


def another_overlay(host: Host) -> list[str]:
    """Return the arguments of an agent that makes another overlay on the host."""
    registry = host.state / "other.json"
    registry.write_text(json.dumps({"config": OTHER, "subnets": {}}))
    return ["--registry", f"file:{registry}", *own_files(host)]


def refusal(agent: Agent) -> str:
    """Return the one line with which it ended."""
    assert agent.exit_code() == 1, agent.said()
    (line,) = [line for line in agent.said() if line.startswith("flannel-udp: ")]
    return line


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("backend", ["udp", "host-gw"])
def test_a_second_agent_for_the_same_overlay_is_refused_by_pid(workers: int, backend: str) -> None:
    config = {"Network": str(OVERLAY), "Backend": {"Type": backend}}
    with Lab(Plan(fresh_name(), hosts=1, agents=(), config=config)) as lab:
        host, flag = lab.hosts[0], f"--workers={workers}"
        with Agent(host, flag) as first:
            first.wait_ready()
            with Agent(host, flag, *own_files(host)) as second:
                pid = f"another flannel-udp (pid {first.process.pid}) has the overlay network {OVERLAY}"
                assert pid in refusal(second)
            assert host.is_ready()
            first.process.kill()
            first.exit_code()
            with Agent(host, flag) as third:  # a killed one holds nothing
                third.wait_ready()


def test_an_agent_for_another_network_is_refused_the_port_of_the_first(host: Host) -> None:
    arguments = another_overlay(host)
    registry = host.state / "other.json"
    registry.write_text(json.dumps({"config": {"Network": "10.7.0.0/16"}, "subnets": {}}))
    with Agent(host, "--workers=2") as first:
        first.wait_ready()
        with Agent(host, "--workers=2", *arguments) as second:
            line = refusal(second)
        assert f"another flannel-udp (pid {first.process.pid}) has UDP port 8285 on {host.underlay}" in line
        assert links_of(host) == ["flannel0"]


def test_of_two_overlays_on_a_host_one_may_keep_routes_past_its_tunnel_and_the_other_removes_none() -> None:
    config = {"Network": str(OVERLAY), "Backend": {"Type": "udp", "DirectRouting": True}}
    reservations = {"10.244.99.0/24": "192.0.2.2"}
    with Lab(Plan(fresh_name(), hosts=1, agents=(), config=config, reservations=reservations)) as lab:
        host = lab.hosts[0]
        with Agent(host) as first:
            first.wait_ready()
            wait_for("its route", lambda: len(ours_of(host)) == 1)
            arguments, registry = another_overlay(host), host.state / "other.json"
            with Agent(host, *arguments) as second:
                second.wait_for_line("wrote ")
                wait_for("it is ready", (host.state / "b.env").exists)
                assert second.stop() == 0
            assert len(ours_of(host)) == 1
            both = {**OTHER, "Backend": {**OTHER["Backend"], "DirectRouting": True}}
            registry.write_text(json.dumps({"config": both, "subnets": {}}))
            with Agent(host, *arguments) as third:
                assert f"(pid {first.process.pid}) has the kernel routes of protocol 82" in refusal(third)
            assert links_of(host) == ["flannel0"]


@pytest.fixture
def tunnelled() -> Iterator[tuple[Host, Agent]]:
    """A host with an overlay by the kernel's VXLAN, and its agent."""
    config = {"Network": str(OVERLAY), "Backend": {"Type": "vxlan"}}
    with Lab(Plan(fresh_name(), hosts=1, agents=(), config=config)) as lab, Agent(lab.hosts[0]) as agent:
        agent.wait_ready()
        yield lab.hosts[0], agent


def test_another_overlay_leaves_the_kernel_s_tunnel_of_the_first(tunnelled: tuple[Host, Agent]) -> None:
    host, _ = tunnelled
    index = link_of(host)["ifindex"]
    with Agent(host, *another_overlay(host)) as second:
        second.wait_for_line("wrote ")
        wait_for("it is ready", (host.state / "b.env").exists)
        assert second.stop() == 0
    assert link_of(host)["ifindex"] == index
    assert not any(host.control("/v1/status")["host_repairs"].values())


IN_THE_WAY = {
    "udp on its port": {"Type": "udp", "Port": 8472},
    "vxlan on its port": {"Type": "vxlan", "VNI": 2},
    "vxlan of its name": {"Type": "vxlan", "VNI": 1, "Port": 8473},
}


@pytest.mark.parametrize("kind", IN_THE_WAY)
def test_another_overlay_that_needs_the_place_of_the_kernel_s_tunnel_is_refused_by_pid(
    tunnelled: tuple[Host, Agent], kind: str
) -> None:
    host, first = tunnelled
    index = link_of(host)["ifindex"]
    arguments, registry = another_overlay(host), host.state / "other.json"
    registry.write_text(json.dumps({"config": {**OTHER, "Backend": IN_THE_WAY[kind]}, "subnets": {}}))
    with Agent(host, "--datapath=userspace", *arguments) as second:
        line = refusal(second)
    assert f"another flannel-udp (pid {first.process.pid}) has the kernel routes of protocol 82" in line
    assert "flannel.1 may be its" in line
    assert link_of(host)["ifindex"] == index


@pytest.mark.parametrize("workers", [1, 2])
def test_another_overlay_beside_it_has_a_device_of_its_own_also_after_a_rename(host: Host, workers: int) -> None:
    flag = f"--workers={workers}"
    with Agent(host, flag) as first:
        first.wait_ready()
        if workers > 1:  # under the very name that the next one would take
            host.configure("link set flannel0 down", "link set flannel0 name flannel1", "link set flannel1 up")
        names = links_of(host)
        with Agent(host, flag, *another_overlay(host)) as second:
            wait_for("its subnet", (host.state / "b.env").exists)
            second.wait_for_line(f"wrote {host.state / 'b.env'}")
            assert sorted(links_of(host)) == ["flannel0", "flannel1"]
            assert second.stop() == 0
        assert links_of(host) == names
        assert host.is_ready()


def test_another_overlay_with_the_usual_control_socket_is_told_which_flags(host: Host) -> None:
    registry = another_overlay(host)[:2]
    with Agent(host) as first:
        first.wait_ready()
        with Agent(host, *registry) as second:
            line = refusal(second)
            assert f"another flannel-udp is running (pid {first.process.pid}, on {host.control_socket})" in line
            assert "choose another --control-socket and --subnet-file" in line


def test_a_take_over_passes_everything_on(host: Host) -> None:
    with ExitStack() as agents:
        agents.enter_context(Agent(host, "--workers=2")).wait_ready()
        for _ in range(2):
            old = pid_of(host)
            second = agents.enter_context(Agent(host, "--workers=2", "--takeover"))
            second.wait_for_take_over(old)
        with Agent(host, "--workers=2", *own_files(host)) as third:
            assert f"(pid {second.process.pid})" in refusal(third)
        second.process.kill()
        second.exit_code()
        agents.enter_context(Agent(host, "--workers=2")).wait_ready()


# What strangers hold

HOLD = """
import fcntl, os, socket, sys
os.setgid(65534), os.setuid(65534)
held = []
for what in sys.argv[1:]:
    if what.startswith("/"):
        held.append(os.open(what, os.O_RDONLY))
        fcntl.flock(held[-1], fcntl.LOCK_EX)
    else:
        held.append(socket.socket(socket.AF_UNIX))
        held[-1].bind("\\0flannel-udp: " + what)
        held[-1].listen(0)
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held_by_nobody(host: Host, *what: str) -> Iterator[None]:
    command = [sys.executable, "-c", HOLD, *what]
    with host.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        try:
            yield
        finally:
            holder.communicate()


def test_locks_that_any_user_can_hold_keep_nobody_out(host: Host) -> None:
    claims = [
        f"the overlay network {OVERLAY}",
        f"UDP port 8285 on {host.underlay}",
    ]
    with held_by_nobody(host, str(host.state), *claims), Agent(host, "--workers=2") as agent:
        agent.wait_ready()
        assert len([line for line in agent.said() if "held by a stranger" in line]) == len(claims)
        assert agent.stop() == 0
    assert remains_of(host) == {"subnet.env"}


LOCK = """
import fcntl, os, sys
os.umask(0)
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(fd, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_lock_that_another_root_process_holds_is_waited_for_with_one_line(host: Host) -> None:
    lock = host.control_socket.with_name(f".{host.control_socket.name}.lock")
    command = [sys.executable, "-c", LOCK, str(lock)]
    held = f"another process holds {lock}"
    with host.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with Agent(host) as agent:
            agent.wait_for_line(held)
            holder.communicate()
            agent.wait_ready()
            assert len([line for line in agent.said() if held in line]) == 1
            assert agent.stop() == 0


# Told to stop at each step of the start


@pytest.mark.parametrize("step", ["interface", "configuration", "etcd", "silent etcd", "hung agent"])
def test_sigterm_is_heard_at_every_step_of_the_start(host: Host, step: str) -> None:
    arguments: list[str] = []
    with ExitStack() as meanwhile:
        match step:
            case "interface":
                host.configure("link set eth0 down")
                line = "finding the external interface failed"
            case "configuration":
                empty = host.state / "empty.json"
                empty.write_text("{}")
                arguments, line = ["--registry", f"file:{empty}"], "reading the network configuration failed"
            case "etcd":
                arguments = ["--registry=etcd", "--etcd-endpoints=http://192.0.2.99:2379"]
                line = "reading the network configuration failed"
            case "silent etcd":  # takes the connection and says nothing
                silent = meanwhile.enter_context(host.socket(socket.AF_INET, socket.SOCK_STREAM))
                silent.bind((str(host.underlay), 2379))
                silent.listen()
                arguments = ["--registry=etcd", f"--etcd-endpoints=http://{host.underlay}:2379"]
                line = "using interface eth0"
            case _:
                old = meanwhile.enter_context(Agent(host))
                old.wait_ready()
                freeze(old.process.pid)
                arguments, line = ["--takeover"], "using interface eth0"
        with Agent(host, *arguments) as agent:
            agent.wait_for_line(line)
            agent.process.terminate()
            assert agent.exit_code(timeout_s=promised(3.0)) == 0, agent.said()
            assert agent.said()[-1] == "stopped"
            assert not [line for line in agent.said() if "Traceback" in line]
