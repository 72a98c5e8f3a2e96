"""One agent takes over from another while traffic flows; what is lost when it ends otherwise, and when etcd does."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from bench.takeover import Successors, pass_datagrams
from flannel_udp.handover.conversation import PROTOCOL, Connection, handover_path
from flannel_udp.handover.state import Terms
from flannel_udp.lab.lab import Lab
from tests.support.agents import (
    Agent,
    Log,
    command_line,
    log_of,
    pid_of,
    remains_of,
    subnet_of,
    up_with_peers,
    wait_for,
)
from tests.support.flow import Flow
from tests.support.labs import NEEDS_NETNS
from tests.support.patience import PATIENCE_S, promised
from tests.support.standstill import freeze
from tests.support.systemd import Systemd

pytestmark = NEEDS_NETNS

RATE_PPS = 5_000
"""What passes on a busy machine; `python -m bench.takeover` takes more."""
STANDSTILL_MS = 6_000
"""For so long a busy machine may let an end of the traffic not run."""
GAP_S = 2.0
TRIES = 5
TERMS = Terms("", "192.0.2.1", "192.0.2.1", 1, "auto")


@pytest.fixture
def duo(shared_duo: Lab) -> Lab:
    """Two hosts whose agents run and know each other, whatever the test before did to them."""
    for host in shared_duo.hosts:
        if host.agent_pid() is None:
            host.start_agent()
        host.wait_ready()
    return up_with_peers(shared_duo)


# It succeeds


def test_a_take_over_loses_nothing_and_leaves_one_agent(duo: Lab) -> None:
    h1, h2 = duo.hosts
    subnet, old = subnet_of(h1), pid_of(h1)
    with Flow(h1.pods[0], h2.pods[0]) as out, Flow(h2.pods[0], h1.pods[0]) as back:
        out.wait_for_one_sent_from_now()
        with Agent(h1, "--takeover") as agent:
            agent.wait_for_take_over(old)
            assert pid_of(h1) == agent.process.pid
            back.wait_for_one_sent_from_now()
            out.wait_for_one_sent_from_now()
            out.end()
            back.end()
            assert subnet_of(h1) == subnet
            assert log_of(h1)[-1] != "stopped"
            assert f"handed over to process {agent.process.pid}; stopped" in log_of(h1)
            assert agent.stop() == 0
            assert remains_of(h1) == {"subnet.env"}
    assert (out.missing, back.missing) == ([], [])


def test_small_packets_at_a_rate_keep_their_order_and_number(duo: Lab) -> None:
    h1, h2 = duo.hosts
    for host in (h1, h2):
        with Successors(host) as successors:
            for _ in range(2):
                # As many packets, at a rate that a machine leaves us the time for which has just become busy.
                seconds = promised(3.0)
                rate_pps = round(RATE_PPS * 3.0 / seconds)
                passage = pass_datagrams(h1, h2, rate_pps, seconds, successors.next, silence_ms=STANDSTILL_MS)
                assert (passage.lost, passage.reordered) == (0, 0), passage
        host.start_agent()  # what the killed one left is taken over
        host.wait_ready()
        up_with_peers(duo)


def test_without_an_agent_it_starts_afresh(duo: Lab) -> None:
    h1 = duo.hosts[0]
    h1.stop_agent()
    with Agent(h1, "--takeover") as agent:
        agent.wait_for_line(f"no agent to take over from on {h1.control_socket}: starting afresh")
        agent.wait_ready()
        assert agent.stop() == 0


# It fails, and the old one goes on


@pytest.mark.parametrize(
    ("flag", "why"),
    [
        ("--workers=2", "its workers is 2, ours 1"),
        ("--offload=off", "its offload is off, ours auto"),
        ("--public-ip=192.0.2.99", "its public IP is 192.0.2.99, ours 192.0.2.1"),
        ("--healthz-ip=192.0.2.77", "cannot serve health on 192.0.2.77 port 8080"),
    ],
)
def test_what_does_not_fit_is_one_line_and_changes_nothing(duo: Lab, flag: str, why: str) -> None:
    h1, h2 = duo.hosts
    old = h1.agent_pid()
    with Flow(h1.pods[0], h2.pods[0]) as flow:
        with Agent(h1, "--takeover", flag, *(["--healthz-port=8080"] if "healthz" in flag else [])) as agent:
            assert agent.exit_code() == 1
            assert any(why in line for line in agent.said() if line.startswith("flannel-udp: ")), agent.said()
        flow.wait_for_one_sent_from_now()
        flow.end()
    assert flow.missing == []
    assert pid_of(h1) == old
    assert command_line(h1, "status").returncode == 0


@pytest.mark.parametrize("last", ["(connected)", "hello", "ready", "go"])
def test_a_new_agent_that_is_killed_at_any_step_leaves_the_old_one_forwarding(duo: Lab, last: str) -> None:
    h1, h2 = duo.hosts
    registry = "etcd /coreos.com/network" if duo.plan.registry == "etcd" else f"file:{duo.plan.registry_file}"
    terms, log = {**TERMS.document(), "registry": registry}, Log(h1)
    with Flow(h1.pods[0], h2.pods[0], interval_s=0.002) as flow:
        flow.wait_for_one_sent_from_now()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.connect(str(handover_path(h1.control_socket)))
            connection = Connection(sock)
            if last != "(connected)":
                connection.send("hello", protocol=PROTOCOL, terms=terms)
            if last in ("ready", "go"):
                assert connection.receive(PATIENCE_S)["say"] == "descriptors"
                assert connection.receive(PATIENCE_S)["say"] == "state"
                connection.send("ready")
            if last == "go":
                assert connection.receive(PATIENCE_S)["say"] == "go"
        flow.wait_for_one_sent_from_now()
        flow.end()
    assert flow.missing == []
    wait_for("it says so", lambda: bool(log.lines("this agent goes on")))
    h1.wait_ready()
    with Agent(h1, "--takeover") as agent:  # and the next one is served
        agent.wait_for_line("took over from process")
        wait_for("the old one has ended", lambda: h1.agent_pid() is None)
        assert agent.stop() == 0


# Without a take-over


def test_after_kill_9_and_a_plain_start_traffic_is_back_within_two_seconds(duo: Lab) -> None:
    """Once in some tries: on a machine that has other things to do, Python alone may take as long to start."""
    h1, h2 = duo.hosts
    subnet = subnet_of(h1)
    gaps_s: list[float] = []
    with Flow(h1.pods[0], h2.pods[0]) as flow:
        while not gaps_s or (gaps_s[-1] >= promised(GAP_S) and len(gaps_s) < TRIES):
            flow.wait_for_one_sent_from_now()
            h1.kill_agent()
            killed_s = time.monotonic()
            h1.start_agent()
            flow.wait_for_one_sent_from_now()
            gaps_s.append(time.monotonic() - killed_s)
    assert gaps_s[-1] < promised(GAP_S), gaps_s
    assert subnet_of(h1) == subnet


def test_systemds_descriptor_store_carries_flannel0_over_a_restart(duo: Lab, tmp_path: Path) -> None:
    h1, h2 = duo.hosts
    h1.stop_agent()
    with Systemd(tmp_path) as systemd, systemd.run(h1) as agent:
        wait_for("ready", systemd.is_ready)
        systemd.wait_stored(["icmp", "tun-0", "udp-0"])
        with Flow(h1.pods[0], h2.pods[0], interval_s=0.01) as flow:
            flow.wait_for_one_sent_from_now()
            assert agent.stop() == 0
            index = h1.run(["cat", "/sys/class/net/flannel0/ifindex"]).stdout
            with systemd.run(h1) as next_agent:
                wait_for("ready", systemd.is_ready)
                systemd.wait_stored(["icmp", "tun-0", "udp-0"])
                next_agent.wait_for_line("going on with flannel0 as the last run left it")
                flow.wait_for_one_sent_from_now()
                flow.end()
                assert flow.lost == 0, h1.control("/v1/status")
                assert h1.run(["cat", "/sys/class/net/flannel0/ifindex"]).stdout == index
                assert next_agent.stop() == 0
    assert remains_of(h1) == {"subnet.env"}


@pytest.mark.parametrize("shared_duo", ["etcd"], indirect=True)
def test_an_etcd_that_stands_still_disturbs_no_traffic(duo: Lab) -> None:
    h1, h2 = duo.hosts
    (etcd,) = [pid for pid in pids_in(duo.net.namespace) if Path(f"/proc/{pid}/comm").read_text() == "etcd\n"]

    with Flow(h1.pods[0], h2.pods[0]) as flow:
        flow.wait_for_one_sent_from_now()
        log = Log(h1)
        freeze(etcd)
        try:
            wait_for("the agent has noticed", lambda: bool(log.lines("watching the subnets")))
        finally:
            os.kill(etcd, signal.SIGCONT)
        wait_for("it works again", lambda: bool(log.lines("works again")))
        flow.wait_for_one_sent_from_now()
        flow.end()
    assert flow.missing == []


def pids_in(namespace: str) -> list[int]:
    done = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=True)
    return [int(pid) for pid in done.stdout.split()]
