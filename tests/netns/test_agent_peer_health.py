"""What the peers answer: who hears nothing back is told why, and nobody is blamed for being idle or taciturn."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, UDP

from flannel_udp.dataplane.probes import PROBE_IDENTIFIER
from flannel_udp.host.icmp_errors import READ_A_SECOND_MAX
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host, Pod
from flannel_udp.lab.plan import OVERLAY, UNDERLAY_GATEWAY, Plan
from flannel_udp.lab.sites import UNDERLAY
from tests.support.agents import Log, command_json, command_line, pid_of, up_with_peers, wait_for
from tests.support.by_hand import by_hand
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import PATIENCE_S
from tests.support.taps import send_raw

pytestmark = NEEDS_NETNS

N_LOOKS = 12
"""So many looks of an agent at its peers are enough to call one ill."""


@pytest.fixture(scope="module")
def shared() -> Iterator[Lab]:
    with Lab(Plan(fresh_name(), hosts=3)) as lab:
        yield up_with_peers(lab)


@pytest.fixture
def trio(shared: Lab) -> Iterator[Lab]:
    """Three hosts whose agents run, know each other and have no complaints."""
    for host in shared.hosts:
        if host.agent_pid() is None:
            host.start_agent()
        host.wait_ready()
    up_with_peers(shared)
    wait_for("nobody complains", lambda: problems_of(shared.hosts[0]) == [])
    yield shared


@contextmanager
def pinging(source: Pod, target: Pod) -> Iterator[None]:
    """Let one pod ping another all the time."""
    ping = source.popen(["ping", "-i0.1", "-q", str(target.ip)], stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        ping.kill()
        ping.wait()


def problems_of(host: Host) -> list[str]:
    problems: list[str] = host.control("/v1/status")["problems"]
    return problems


def row_of(host: Host, peer: Host) -> dict[str, Any]:
    """Return what `peers` says of another host, which has one subnet."""
    (row,) = [row for row in host.control("/v1/peers") if row["public_ip"] == str(peer.underlay)]
    return dict(row)


def wait_for_looks(host: Host, peer: Host, n: int = N_LOOKS) -> None:
    """Wait until the agent has looked at its peers so often: with every look the age of what it heard is measured."""
    ages: set[float] = set()

    def looked() -> bool:
        ages.add(int(host.control("/v1/status")["uptime_s"]))
        return len(ages) > n

    wait_for(f"{n} looks at {peer.name}", looked)


def kill(host: Host) -> Callable[[], None]:
    host.kill_agent()
    return host.start_agent


def drop_port(host: Host) -> Callable[[], None]:
    rule = ["INPUT", "-p", "udp", "--dport", "8285", "-j", "DROP"]
    host.run(["iptables", "-w", "-I", *rule])
    return lambda: _run(host, ["iptables", "-w", "-D", *rule])


def reject_port(host: Host) -> Callable[[], None]:
    rule = ["INPUT", "-p", "udp", "--dport", "8285", "-j", "REJECT", "--reject-with", "icmp-admin-prohibited"]
    host.run(["iptables", "-w", "-I", *rule])
    return lambda: _run(host, ["iptables", "-w", "-D", *rule])


def cut_link(host: Host) -> Callable[[], None]:
    host.configure("link set eth0 down")
    return lambda: host.configure("link set eth0 up")


def _run(host: Host, command: list[str]) -> None:
    host.run(command)


@pytest.mark.parametrize(
    ("ail", "reason"),
    [
        (kill, "port unreachable, says 192.0.2.2"),
        (drop_port, "it answers no echo"),
        (reject_port, "prohibited by a filter, says 192.0.2.2"),
        (cut_link, "nothing comes back"),  # first in silence, then the kernel says that nobody answers ARP
    ],
)
def test_a_peer_that_does_not_answer_is_named_with_the_reason_until_it_does(
    trio: Lab, ail: Callable[[Host], Callable[[], None]], reason: str
) -> None:
    h1, h2, _ = trio.hosts
    log = Log(h1)
    with pinging(h1.pods[0], h2.pods[0]):
        wait_for("it is heard", lambda: row_of(h1, h2)["health"] == "heard")
        mend = ail(h2)
        try:
            wait_for("it is named", lambda: problems_of(h1) != [])
            (problem,) = problems_of(h1)
            assert f"peer {h2.underlay} ({h2.subnet})" in problem
            assert reason in problem
            assert "UDP 8285" in problem
            status = h1.control("/v1/status")
            assert (status["ready"], status["degraded"], status["peer_health"]["ill"]) == (True, ["peers"], 1)
            row = row_of(h1, h2)
            assert row["health"] == "ill"
            assert "nothing comes back" in row["problem"]
            assert row["heard_ago_s"] >= 0  # behind a closed port it still asks whether we live
            assert "nothing comes back" in command_line(h1, "route", "get", str(h2.pods[0].ip)).stdout
        finally:
            mend()
        wait_for("it is well", lambda: problems_of(h1) == [])
    assert row_of(h1, h2)["health"] == "heard"
    kinds = [line.split(": ", 1)[0] for line in log.lines(reason)]
    assert (kinds[0], kinds[-1]) == ("degraded", "no longer degraded")
    assert len(kinds) <= 4


def test_an_idle_peer_that_is_down_is_no_fault_and_a_probe_tells_it(trio: Lab) -> None:
    h1, _, h3 = trio.hosts
    h3.kill_agent()
    answers: dict[str, dict[str, Any]] = {}

    def the_other_answers() -> bool:  # it has three seconds, which may be too few on a busy machine
        answers.update({row["public_ip"]: row["echo"] for row in command_json(h1, "peers", "--probe")})
        assert answers["192.0.2.3"] == {"answered": False, "round_trip_ms": None, "reason": "no answer"}
        return bool(answers["192.0.2.2"]["answered"])

    wait_for("the other one answers", the_other_answers)
    assert answers["192.0.2.2"]["round_trip_ms"] > 0

    def both_are_told() -> bool:
        text = command_line(h1, "peers", "--probe").stdout
        assert "no answer" in text
        return " ms" in text

    wait_for("the table tells of both", both_are_told)


def test_a_flow_in_one_direction_makes_nobody_ill(trio: Lab) -> None:
    h1, h2, _ = trio.hosts
    with h1.pods[0].socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.connect((str(h2.pods[0].ip), 9))
        h2.pods[0].run(
            ["iptables", "-w", "-I", "OUTPUT", "-p", "icmp", "--icmp-type", "port-unreachable", "-j", "DROP"]
        )
        ticks = 0

        def sent_for_long() -> bool:
            nonlocal ticks
            ticks += 1
            udp.send(b"one way")
            return ticks > 200

        wait_for("a flow of its own", sent_for_long)
        wait_for("all of it is counted", lambda: row_of(h1, h2)["packets_out"] >= 200)
        assert problems_of(h1) == []


def test_a_peer_that_answers_no_echoes_is_not_ill_while_it_is_heard(trio: Lab) -> None:
    h1, h2, _ = trio.hosts
    h2.run(["sysctl", "-qw", "net.ipv4.icmp_echo_ignore_all=1"])
    try:
        with pinging(h1.pods[0], h2.pods[0]):
            wait_for_looks(h1, h2)
            assert problems_of(h1) == []
            assert row_of(h1, h2)["health"] == "heard"
    finally:
        h2.run(["sysctl", "-qw", "net.ipv4.icmp_echo_ignore_all=0"])


def test_forged_icmp_errors_make_nobody_ill_and_a_flood_of_them_is_not_read_in_full(trio: Lab) -> None:
    h1, h2, _ = trio.hosts
    datagram = IP(src=str(h1.underlay), dst=str(h2.underlay)) / UDP(sport=8285, dport=8285) / bytes(8)
    forged = IP(src=str(h2.underlay), dst=str(h1.underlay)) / ICMP(type=3, code=3) / datagram
    n = 10 * READ_A_SECOND_MAX
    before = h1.control("/v1/status")["icmp_errors"]
    with pinging(h1.pods[0], h2.pods[0]):
        send_raw(h2, forged, n)  # within much less than the seconds in which all of them might be read
        wait_for("one is heard", lambda: row_of(h1, h2)["error"] is not None)
        wait_for_looks(h1, h2)
        assert problems_of(h1) == []
    assert 0 < h1.control("/v1/status")["icmp_errors"] - before < n


def cpu_s(host: Host) -> float:
    """Return how much of a processor the agent's control thread has had."""
    pid = pid_of(host)
    fields = Path(f"/proc/{pid}/task/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")  # proc(5): utime, stime


def test_echo_replies_that_a_stranger_forges_cost_the_control_thread_nothing(trio: Lab) -> None:
    h1, h2, _ = trio.hosts

    def cost_s(identifier: int) -> float:
        forged = IP(src=str(h2.underlay), dst=str(h1.underlay)) / ICMP(type=0, id=identifier) / bytes(16)
        before = cpu_s(h1)
        send_raw(h2, forged, 60_000)
        return cpu_s(h1) - before

    assert cost_s(PROBE_IDENTIFIER) < cost_s(PROBE_IDENTIFIER + 1) + 0.1  # 0.02 s for the looks at peers, and such


def test_an_ill_peer_that_comes_back_at_another_address_is_a_new_one() -> None:
    moved = IPv4Address("192.0.2.22")
    with Lab(Plan(fresh_name(), hosts=2, reservations={"10.244.200.0/24": "192.0.2.2"})) as lab:
        h1, h2 = up_with_peers(lab).hosts
        with pinging(h1.pods[0], h2.pods[0]):
            h2.kill_agent()
            wait_for("it is named", lambda: problems_of(h1) != [])
            h2.configure(
                "addr flush dev eth0",
                f"addr add {moved}/{UNDERLAY.prefixlen} dev eth0",
                f"route add default via {UNDERLAY_GATEWAY}",
            )
            by_hand(lab).put("10.244.200.0-24", json.dumps({"PublicIP": str(moved)}))
            h2.start_agent()
            h2.wait_ready()
            wait_for("nobody is named", lambda: problems_of(h1) == [])
            (row,) = h1.control("/v1/peers")
            assert row["public_ip"] == str(moved)
            wait_for("it is heard", lambda: h1.control("/v1/peers")[0]["health"] == "heard")
            # h1 may have sent to the new address before the agent there was ready, and named it for that.
            wait_for("nobody is named any more", lambda: problems_of(h1) == [])


def test_host_gw_names_a_peer_whose_link_is_cut() -> None:
    config = {"Network": str(OVERLAY), "Backend": {"Type": "host-gw"}}
    with Lab(Plan(fresh_name(), hosts=3, config=config)) as lab:
        up_with_peers(lab)
        h1, h2, h3 = lab.hosts
        with pinging(h1.pods[0], h2.pods[0]), pinging(h1.pods[0], h3.pods[0]):
            wait_for("it is heard", lambda: row_of(h1, h2)["health"] == "heard")
            h2.configure("link set eth0 down")
            # On a busy machine the other one may be named, too, for a moment.
            wait_for("it is named", lambda: any(f"peer {h2.underlay} " in each for each in problems_of(h1)))
            h2.configure("link set eth0 up")
            wait_for("it is well", lambda: problems_of(h1) == [])

        def all_answer() -> bool:
            return [row["echo"]["answered"] for row in command_json(h1, "peers", "--probe")] == [True, True]

        wait_for("both answer", all_answer)


def test_of_ten_thousand_peers_a_hundred_ill_ones_are_summed_up() -> None:
    n_peers, n_ill = 10_000, 100
    first_subnet, first_host = int(IPv4Address("10.64.0.0")), int(IPv4Address("198.18.1.0"))
    peers = {f"{IPv4Address(first_subnet + (i << 8))}/24": str(IPv4Address(first_host + i)) for i in range(n_peers)}
    config = {"Network": "10.0.0.0/8", "SubnetLen": 24}
    with Lab(Plan(fresh_name(), hosts=1, config=config, reservations=peers)) as lab:
        (h1,) = lab.hosts
        log = Log(h1)
        wait_for("all peers are known", lambda: h1.control("/v1/status")["peers"] == n_peers)
        with h1.pods[0].socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:

            def all_are_ill() -> bool:
                for i in range(n_ill):
                    with suppress(OSError):  # what an ICMP error says of the datagram before
                        udp.sendto(b"anybody there?", (str(IPv4Address(first_subnet + (i << 8) + 5)), 9))
                return bool(h1.control("/v1/status")["peer_health"]["ill"] == n_ill)

            wait_for("a hundred are ill", all_are_ill, 2 * PATIENCE_S)
        last = "and 90 more or so: see flannel-udp peers"
        wait_for("they are summed up", lambda: problems_of(h1)[-1:] == [last])
        assert len(problems_of(h1)) == 11
        assert h1.control("/v1/status")["peer_health"]["idle"] == n_peers - n_ill
        assert len(log.lines("degraded")) < 50


# A table `ip` of a bridge's forwarding: what the network between the hosts lets pass.
FABRIC = "add table bridge fabric; add chain bridge fabric between { type filter hook forward priority 0; }; "


@pytest.mark.skipif(shutil.which("nft") is None, reason="needs nft")
@pytest.mark.parametrize("end", ["saddr", "daddr"])
def test_host_gw_names_a_peer_of_which_the_network_lets_no_pods_addresses_pass(end: str) -> None:
    config = {"Network": str(OVERLAY), "Backend": {"Type": "host-gw"}}
    with Lab(Plan(fresh_name(), hosts=2, config=config)) as lab:
        h1, h2 = up_with_peers(lab).hosts
        lab.net.run(["nft", f"{FABRIC} add rule bridge fabric between ip {end} {OVERLAY} drop"])
        with pinging(h1.pods[0], h2.pods[0]):
            wait_for("it is named", lambda: problems_of(h1) != [])
            text = (
                f"peer {h2.underlay} ({h2.subnet}): it answers, and to nothing that has pods' addresses: the network "
                "between the hosts lets these not pass: switch off its source and destination check, or port security, "
                "for every host (WireGuard: put the pods' subnet into AllowedIPs), or choose a Backend.Type "
                "with a tunnel"
            )
            assert problems_of(h1) == [text]
            assert "nothing that has pods" in command_line(h1, "peers", "--probe").stdout
            lab.net.run(["nft", "delete table bridge fabric"])
            wait_for("all is well", lambda: problems_of(h1) == [], 90.0)


def test_host_gw_blames_no_peer_that_has_no_pods_and_no_end() -> None:
    config = {"Network": str(OVERLAY), "Backend": {"Type": "host-gw"}}
    reservations = {"10.244.1.0/24": "192.0.2.1", "10.244.2.0/24": "192.0.2.2"}
    with Lab(Plan(fresh_name(), hosts=2, pods=0, config=config, reservations=reservations)) as lab:
        h1, h2 = up_with_peers(lab).hosts
        wait_for("the reservation is a host of this backend", lambda: problems_of(h1) == [])
        h2.configure("link del cni0")
        answer = command_line(h1, "peers", "--probe").stdout
        assert (" ms" in answer, "pods" in answer) == (True, False), answer
        assert problems_of(h1) == []
        h2.run(["sysctl", "-qw", "net.ipv4.ip_forward=0"])  # else its kernel is a router, and says that hops end there
        assert "nothing that has pods" in command_line(h1, "peers", "--probe").stdout
