"""Agents that end and come back: what they keep, what they leave, what they take over."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import Plan
from flannel_udp.lab.probe import ping_matrix
from tests.support.agents import (
    WITH_TIME_TO_CLEAN_UP,
    Agent,
    Log,
    links_of,
    remains_of,
    subnet_of,
    unanswered,
    up_with_peers,
    wait_for,
    wait_for_peers,
)
from tests.support.by_hand import by_hand
from tests.support.flow import Flow
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import promised

pytestmark = NEEDS_NETNS

STOP_S = 2.0
RESERVED = "10.244.200.0/24"


@pytest.fixture
def duo(shared_duo: Lab) -> Lab:
    """Two hosts whose agents run and know each other, whatever the test before did to them."""
    for host in shared_duo.hosts:
        if host.agent_pid() is None:
            host.configure(*(f"link del {link}" for link in links_of(host)))
            host.start_agent()
        host.wait_ready()
    return up_with_peers(shared_duo)


@pytest.fixture
def host() -> Iterator[Host]:
    """A host on which nothing runs yet."""
    with Lab(Plan(fresh_name(), hosts=1, agents=())) as lab:
        yield lab.hosts[0]


@pytest.fixture
def reserved_host(registry: str) -> Iterator[tuple[Lab, Host]]:
    plan = Plan(fresh_name(), hosts=1, registry=registry, agents=(), reservations={RESERVED: "192.0.2.1"})
    with Lab(plan) as lab:
        yield lab, lab.hosts[0]


def assert_all_reach_each_other(lab: Lab) -> None:
    wait_for_peers(lab.hosts)
    assert unanswered(lab.pods()) == []


# What they keep


def test_a_killed_agent_comes_back_with_its_subnet(duo: Lab) -> None:
    h1 = duo.hosts[0]
    subnet, entries = subnet_of(h1), by_hand(duo).subnets().keys()
    h1.kill_agent()
    h1.subnet_file.unlink()  # the registry alone knows it now
    h1.start_agent()
    h1.wait_ready()
    assert subnet_of(h1) == subnet
    assert by_hand(duo).subnets().keys() == entries
    assert_all_reach_each_other(duo)


def test_without_a_lease_subnet_env_decides(duo: Lab) -> None:
    h1 = duo.hosts[0]
    subnet = subnet_of(h1)
    h1.kill_agent()
    by_hand(duo).delete(str(subnet).replace("/", "-"))
    log = Log(h1)
    h1.start_agent()
    h1.wait_ready()
    assert f"acquired a new subnet {subnet}" in log.lines()
    assert subnet_of(h1) == subnet
    assert_all_reach_each_other(duo)


def test_a_broken_subnet_env_is_one_warning_and_written_anew(host: Host) -> None:
    host.subnet_file.write_text("FLANNEL_SUBNET=nonsense\n")
    with Agent(host) as agent:
        agent.wait_for_line("wrote ")
        (warning,) = [line for line in agent.said() if "going on without" in line]
        assert warning.startswith(f"{host.subnet_file} lacks FLANNEL_NETWORK, FLANNEL_MTU, FLANNEL_IPMASQ")
    assert "FLANNEL_MTU=1472" in host.subnet_file.read_text()


# What they leave


def test_sigterm_ends_it_within_two_seconds_and_leaves_only_subnet_env(reserved_host: tuple[Lab, Host]) -> None:
    lab, host = reserved_host
    with Agent(host) as agent:
        agent.wait_ready()
        assert remains_of(host) > {"subnet.env", "flannel0", "flannel-udp.sock"}
        started_s = time.monotonic()
        assert agent.stop() == 0
        assert time.monotonic() - started_s < promised(STOP_S)
        assert agent.said()[-1] == "stopped"
        assert not any("Traceback" in line or "Error" in line for line in agent.said())
    assert remains_of(host) == {"subnet.env"}
    assert by_hand(lab).subnets().keys() == {RESERVED.replace("/", "-")}


def test_a_flood_holds_up_neither_an_answer_nor_the_end(duo: Lab) -> None:
    h1, h2 = duo.hosts
    with Flow(h1.pods[0], h2.pods[0], interval_s=0), Flow(h2.pods[0], h1.pods[0], interval_s=0):
        wait_for("the flood is on", lambda: h1.control("/v1/status")["counters"]["out"]["packets"] > 5000)
        started_s = time.monotonic()
        assert h1.control("/v1/status")["ready"] is True
        assert time.monotonic() - started_s < promised(1.0)
        h1.stop_agent(timeout_s=promised(STOP_S))


def test_sigterm_while_waiting_for_the_configuration_ends_it_too(host: Host) -> None:
    host.plan.registry_file.write_text("{}")
    with Agent(host) as agent:
        agent.wait_for_line("holds no network configuration")
        started_s = time.monotonic()
        assert agent.stop() == 0
        assert time.monotonic() - started_s < promised(STOP_S)
    assert remains_of(host) == set()


def test_an_agent_that_ends_keeps_its_lease_unless_told_to_release_it(duo: Lab) -> None:
    h1 = duo.hosts[0]
    key = str(subnet_of(h1)).replace("/", "-")
    h1.stop_agent()
    assert key in by_hand(duo).subnets()
    with Agent(h1, "--release-on-exit", program=WITH_TIME_TO_CLEAN_UP) as agent:
        agent.wait_ready()
        assert agent.stop() == 0
        assert f"released subnet {subnet_of(h1)}" in agent.said()
    assert key not in by_hand(duo).subnets()


def test_release_on_exit_leaves_a_reservation_as_it_was(reserved_host: tuple[Lab, Host]) -> None:
    lab, host = reserved_host
    with Agent(host, "--release-on-exit", program=WITH_TIME_TO_CLEAN_UP) as agent:
        agent.wait_ready()
        assert str(subnet_of(host)) == RESERVED
        assert agent.stop() == 0
    entries = by_hand(lab).subnets()
    assert entries.keys() == {RESERVED.replace("/", "-")}
    value = json.loads(entries[RESERVED.replace("/", "-")])
    assert value["PublicIP"] == "192.0.2.1"
    assert "Expires" not in value  # still permanent


@pytest.mark.parametrize("shared_duo", ["etcd"], indirect=True)
def test_release_on_exit_does_not_wait_for_a_registry_that_is_away(duo: Lab) -> None:
    h1 = duo.hosts[0]
    h1.stop_agent()
    with Agent(h1, "--release-on-exit") as agent:
        agent.wait_ready()
        duo.net.configure("link set underlay down")
        try:
            started_s = time.monotonic()
            assert agent.stop() == 0
            assert time.monotonic() - started_s < promised(STOP_S)
        finally:
            duo.net.configure("link set underlay up")
        agent.wait_for_line("the lease was not released")


# What they take over


def test_a_flannel0_that_was_left_over_is_taken_over_with_all_that_is_on_it(host: Host) -> None:
    host.configure(
        "tuntap add dev flannel0 mode tun",
        "addr add 10.244.99.0/32 dev flannel0",
        "addr add 10.9.9.9/24 dev flannel0",
        "link set flannel0 mtu 1000 up",
        "route add 10.244.0.0/16 dev flannel0",
        "route add 10.98.0.0/16 dev flannel0",
    )
    with Agent(host) as agent:
        agent.wait_ready()
        (link,) = json.loads(host.run(["ip", "-json", "addr", "show", "dev", "flannel0"]).stdout)
        addresses = [address["local"] for address in link["addr_info"] if address["family"] == "inet"]
        assert (addresses, link["mtu"]) == ([str(subnet_of(host).network_address)], 1472)
        routes = host.run(["ip", "route", "show", "dev", "flannel0"]).stdout.split()
        assert routes == ["10.244.0.0/16"]
        assert links_of(host) == ["flannel0"]
        assert agent.stop() == 0
    # A persistent device is somebody else's: it stays, with nothing of ours on it.
    assert remains_of(host) == {"subnet.env", "flannel0"}
    assert host.run(["ip", "-4", "-o", "addr", "show", "dev", "flannel0"]).stdout == ""


def test_traffic_flows_over_a_flannel0_that_was_left_over(duo: Lab) -> None:
    h1 = duo.hosts[0]
    h1.stop_agent()
    h1.configure("tuntap add dev flannel0 mode tun", "addr add 10.9.9.9/24 dev flannel0")
    h1.start_agent()
    h1.wait_ready()
    assert_all_reach_each_other(duo)
    h1.stop_agent()  # so that the next test begins with a device of its own


def test_a_flannel0_in_use_by_another_program_means_the_next_free_name(host: Host) -> None:
    squatter = ["socat", "TUN:10.9.9.1/24,tun-name=flannel0,iff-no-pi", "PIPE"]
    with host.popen(squatter) as socat:
        try:
            wait_for("socat has made it", lambda: links_of(host) == ["flannel0"])
            with Agent(host) as agent:
                agent.wait_ready()
                assert host.control("/v1/status")["tunnel"]["name"] == "flannel1"
                assert agent.stop() == 0
            assert links_of(host) == ["flannel0"]
        finally:
            socat.kill()


def test_the_control_socket_of_a_killed_agent_is_taken_over(host: Host) -> None:
    with Agent(host) as agent:
        agent.wait_ready()
        agent.process.kill()
        agent.process.wait()
    assert host.control_socket.exists()
    with Agent(host) as agent:
        agent.wait_ready()
        assert host.control("/v1/status")["pid"] == agent.process.pid


# What breaks under them


def test_the_underlay_may_go_down_and_come_back(duo: Lab) -> None:
    h1, h2 = duo.hosts
    assert unanswered(duo.pods()) == []
    duo.net.configure("link set h1 down")
    assert None in ping_matrix(duo.pods(), timeout_s=0.2).values()
    duo.net.configure("link set h1 up")
    wait_for("traffic again", lambda: None not in ping_matrix(duo.pods(), timeout_s=0.2).values())
    assert h1.agent_pid() is not None
    assert h2.agent_pid() is not None


# What they cost while nothing happens


def load_of(pid: int) -> tuple[int, int]:
    """Return the clock ticks (10 ms) of CPU time and the voluntary context switches of all threads so far."""
    ticks = switches = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            fields = (task / "stat").read_text().rpartition(")")[2].split()
            lines = (task / "status").read_text().splitlines()
        except OSError:
            continue  # it has just ended
        ticks += int(fields[11]) + int(fields[12])  # utime, stime: fields 14 and 15 of proc_pid_stat(5)
        status = dict(line.split(":", 1) for line in lines)
        switches += int(status["voluntary_ctxt_switches"])
    return ticks, switches


def rest(hosts: list[Host], seconds: float) -> dict[str, tuple[int, int]]:
    """Watch agents that have nothing to do, and return what each used meanwhile."""
    pids = {host.name: host.agent_pid() or 0 for host in hosts}
    before = {name: load_of(pid) for name, pid in pids.items()}
    time.sleep(seconds)
    after = {name: load_of(pid) for name, pid in pids.items()}
    return {name: (after[name][0] - before[name][0], after[name][1] - before[name][1]) for name in pids}


def test_an_agent_with_nothing_to_do_rests_also_after_errors_of_peer_underlay_and_tunnel(duo: Lab) -> None:
    h1, h2 = duo.hosts
    # The peer answers with port unreachable, then the underlay is gone, then flannel0 is down.
    h2.kill_agent()
    ping_matrix(duo.pods(), timeout_s=0.1)
    h1.configure("link set eth0 down")
    ping_matrix(duo.pods(), timeout_s=0.1)
    h1.configure("link set eth0 up")
    h1.configure("link set flannel0 down")
    h2.start_agent()
    h2.wait_ready()
    ping_matrix(duo.pods(), timeout_s=0.1)
    used = rest(duo.hosts, 2.0)
    for name, (ticks, switches) in used.items():
        assert ticks <= 20, f"{name}: {ticks} ticks of 10 ms in 2 s"
        assert switches <= 400, f"{name}: {switches} switches in 2 s"
