"""What odd hosts bring to an agent that has to go on: devices that wander, logs that nobody reads, shared folders."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import Plan
from flannel_udp.lab.probe import ping_matrix
from tests.support.agents import (
    Agent,
    in_mounts_of,
    links_of,
    peers_of,
    subnet_of,
    unanswered,
    up_with_peers,
    wait_for,
    wait_for_peers,
)
from tests.support.labs import NEEDS_NETNS, fresh_name

pytestmark = NEEDS_NETNS


@pytest.fixture
def duo() -> Iterator[Lab]:
    with Lab(Plan(fresh_name(), hosts=2)) as lab:
        yield up_with_peers(lab)


@pytest.fixture
def host() -> Iterator[Host]:
    with Lab(Plan(fresh_name(), hosts=1, agents=())) as lab:
        yield lab.hosts[0]


def passes(lab: Lab) -> bool:
    return None not in ping_matrix([host.pods[0] for host in lab.hosts]).values()


def test_a_flannel0_that_is_moved_into_another_namespace_is_made_anew(duo: Lab) -> None:
    h1, h2 = duo.hosts
    h1.configure(f"link set flannel0 netns {h2.pods[0].namespace}")
    wait_for("it is there again", lambda: links_of(h1) == ["flannel0"] and h1.is_ready())
    wait_for("packets pass", lambda: passes(duo))


def test_a_flannel0_with_another_name_is_gone_on_with(duo: Lab) -> None:
    h1 = duo.hosts[0]
    h1.configure("link set flannel0 down", "link set flannel0 name foo0", "link set foo0 up")
    wait_for("it is known", lambda: h1.control("/v1/status")["tunnel"]["name"] == "foo0")
    wait_for("packets pass", lambda: passes(duo))


@pytest.mark.parametrize(
    "standard_error", ["> /dev/full", "> >(exit 0)", ">&-"], ids=["a full disk", "nobody reads", "closed"]
)
def test_a_log_that_cannot_be_written_stops_nothing(host: Host, standard_error: str) -> None:
    # As a service has it: unbuffered there would be nothing left to be flushed at the end.
    by_a_shell = ("bash", "-c", f'unset PYTHONUNBUFFERED; exec "$@" 2{standard_error}', "bash")
    with Agent(host, wrapper=by_a_shell, environment={"FLANNELD_NOSUCHTHING": "1"}) as agent:
        agent.wait_ready()
        host.configure("link del flannel0")  # is said, or would be
        wait_for("it is there again", lambda: links_of(host) == ["flannel0"] and host.is_ready())
        assert agent.stop() == 0


def test_a_link_to_a_folder_that_is_not_there_yet_is_where_subnet_env_is_written(host: Host) -> None:
    link, target = host.state / "env", host.state / "nowhere" / "deep" / "subnet.env"
    link.symlink_to(target)
    with Agent(host, "--subnet-file", str(link)) as agent:
        wait_for("it is written", target.exists)
        assert link.is_symlink()
        assert agent.stop() == 0


def test_a_tmpfs_without_room_for_a_socket_is_waited_for_and_said_once(host: Host) -> None:
    folder = host.state / "tmpfs"
    folder.mkdir()
    full = ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o nr_inodes=1 none {folder} && exec "$@"', "sh")
    with Agent(host, "--control-socket", str(folder / "a.sock"), wrapper=full) as agent:
        line = agent.wait_for_line("making the control socket failed: ")
        assert "No space left on device" in line
        host.run([*in_mounts_of(agent), "mount", "-o", "remount,nr_inodes=100", str(folder)])
        agent.wait_for_line("wrote ")
        assert agent.said().count(line) == 1
        assert agent.stop() == 0


def test_agents_of_two_namespaces_that_share_a_state_folder_are_two_hosts() -> None:
    with Lab(Plan(fresh_name(), hosts=2, agents=())) as lab:
        for each in lab.hosts:
            each.start_agent("--state-dir", str(lab.plan.state / "shared"))
        for each in lab.hosts:
            each.wait_ready()
        wait_for_peers(lab.hosts)
        assert len({subnet_of(each) for each in lab.hosts}) == 2
        assert len({each.control("/v1/status")["lease"]["mark"] for each in lab.hosts}) == 1
        h1 = lab.hosts[0]
        subnet = subnet_of(h1)
        h1.stop_agent()
        h1.start_agent("--state-dir", str(lab.plan.state / "shared"))
        h1.wait_ready()
        assert subnet_of(h1) == subnet
        assert all(each.control("/v1/status")["problems"] == [] for each in lab.hosts)


@pytest.mark.parametrize("backend", ["udp", "host-gw"])
def test_a_peer_that_our_gateway_is_costs_no_other_peer_anything(backend: str) -> None:
    config = {"Network": "10.244.0.0/16", "Backend": {"Type": backend}}
    with Lab(Plan(fresh_name(), hosts=2, config=config, reservations={"10.244.99.0/24": "192.0.2.254"})) as lab:
        up_with_peers(lab)
        h1 = lab.hosts[0]
        if backend == "udp":  # a host-gw entry says so
            assert peers_of(h1)["10.244.99.0/24"] == "192.0.2.254"
        h1.pods[0].run(["ping", "-c", "3", "-i", "0.2", "-W", "1", "10.244.99.2"], check=False)
        assert unanswered([host.pods[0] for host in lab.hosts]) == []
        assert h1.is_ready()


def test_a_full_table_of_connections_is_named_by_status_and_doctor(host: Host) -> None:
    files = {name: host.state / name for name in ("nf_conntrack_count", "nf_conntrack_max")}
    for file in files.values():
        file.write_text("1000\n")
    mounts = " && ".join(f"mount --bind {file} /proc/sys/net/netfilter/{name}" for name, file in files.items())
    wrapper = ("unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh")
    with Agent(host, wrapper=wrapper) as agent:
        agent.wait_ready()
        full = "conntrack's table is full (1,000 connections): new connections of pods are dropped: "
        full += "sysctl -w net.netfilter.nf_conntrack_max=2000"
        wait_for("it is named", lambda: host.control("/v1/status")["problems"] == [full])
        asked = [sys.executable, "-m", "flannel_udp", "doctor", f"--control-socket={host.control_socket}"]
        said = host.run([*wrapper, *asked], check=False).stdout
        assert f"FAULT connections: {full.replace(': sysctl', ': mend: sysctl')}" in said.splitlines()
        assert "FAULT agent: " not in said
        files["nf_conntrack_count"].write_text("7\n")
        wait_for("there is room", lambda: host.control("/v1/status")["problems"] == [])
        assert agent.stop() == 0
