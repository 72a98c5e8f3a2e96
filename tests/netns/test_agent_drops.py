"""What is dropped, by us or by the kernel, is said: in the log, in the status, in the metrics."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import Plan
from flannel_udp.lab.probe import ping
from tests.support.agents import (
    Agent,
    Log,
    acquaint,
    command_json,
    command_line,
    drops_of,
    up_with_peers,
    wait_for,
    wait_for_peers,
)
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.standstill import freeze
from tests.support.taps import send_datagrams, send_raw

pytestmark = NEEDS_NETNS

PORT = 8285
WAITS_FOR_ITS_TABLE = """
import sys
from flannel_udp.agent import agent
from flannel_udp.cli.main import main
agent.TABLE_WAIT_S = 120.0
sys.exit(main())
"""
"""A program: the agent, which by itself waits 2 s for its peers, and then drops what comes from strangers."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(Plan(fresh_name(), hosts=3, agents=("h1", "h2"))) as lab:
        yield up_with_peers(lab)


@pytest.fixture
def fresh(lab: Lab) -> Lab:
    """The same, with an agent on h1 that has dropped nothing and said nothing of it."""
    h1, h2, _ = lab.hosts
    h1.stop_agent()
    h1.start_agent()
    h1.wait_ready()
    assert h2.subnet is not None
    h1.wait_peers({h2.subnet})
    return lab


def dropped(host: Host, reason: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = command_json(host, "status")["last_dropped"].get(reason, [])
    return rows


@contextmanager
def behind_nat(host: Host, address: str) -> Iterator[None]:
    """Let the host's datagrams come from another address than that of its interface."""
    rule = ["POSTROUTING", "-p", "udp", "--dport", str(PORT), "-j", "SNAT", "--to-source", address]
    host.configure(f"addr add {address}/24 dev eth0")
    host.run(["iptables", "-w", "-t", "nat", "-A", *rule])
    try:
        yield
    finally:
        host.run(["iptables", "-w", "-t", "nat", "-D", *rule])
        host.configure(f"addr del {address}/24 dev eth0")


def test_a_sender_behind_nat_is_named_in_one_line_and_in_the_status(fresh: Lab) -> None:
    h1, h2, _ = fresh.hosts
    log = Log(h1)
    target, source = h1.pods[0].ip, h2.pods[0].ip
    acquaint([h1, h2])  # or h2's agent asks by echoes what is wrong: now it asks again in 10 s
    with behind_nat(h2, "192.0.2.200"):
        for n in range(1, 5):  # what waits together would leave, and be dropped, as one
            assert ping(h2.pods[0], [target], timeout_s=0.05) == [None]
            wait_for("it is counted", lambda: drops_of(h1, "in").get("unknown_peer") == n)  # noqa: B023 - called at once
    wait_for("a line", lambda: bool(log.lines("unknown_peer")))
    (line,) = log.lines("unknown_peer")
    assert f"came from 192.0.2.200: {source} > {target}, ICMP, 84 bytes" in line
    assert "--source-check" in line
    rows = dropped(h1, "unknown_peer")
    assert len(rows) == drops_of(h1, "in")["unknown_peer"] == 4
    assert {(row["outer_address"], row["source"], row["destination"]) for row in rows} == {
        ("192.0.2.200", str(source), str(target))
    }
    assert f"{source} > {target}" in command_line(h1, "status").stdout


def test_of_a_flood_the_last_five_are_shown_and_one_line_is_written(fresh: Lab) -> None:
    h1, _, stranger = fresh.hosts
    log = Log(h1)
    inner = [
        bytes(IP(src="10.244.99.1", dst=str(h1.pods[0].ip), id=n) / UDP(sport=n, dport=n) / bytes(n % 100))
        for n in range(1, 2001)
    ]
    for n in range(500, len(inner) + 1, 500):  # the kernel's queue in front of a busy processor holds 1,000
        send_datagrams(stranger, stranger.underlay, h1.underlay, PORT, inner[n - 500 : n])
        wait_for("all are counted", lambda: drops_of(h1, "in").get("unknown_peer") == n)  # noqa: B023 - called at once
    wait_for("a line", lambda: bool(log.lines("unknown_peer")))
    assert [row["bytes"] for row in dropped(h1, "unknown_peer")] == [len(packet) for packet in inner[-5:]]
    assert len(log.lines("unknown_peer")) == 1


def test_what_peers_send_while_an_agent_starts_is_carried_as_soon_as_it_knows_them(lab: Lab) -> None:
    h1, h2, _ = lab.hosts
    pings = ["ping", "-i", "0.005", "-q", str(h1.pods[0].ip)]
    with h2.pods[0].popen(pings, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as pinging:
        try:
            h1.stop_agent()
            with Agent(h1, program=("-c", WAITS_FOR_ITS_TABLE)) as agent:
                agent.wait_ready()
                wait_for("they pass", lambda: h1.control("/v1/status")["counters"]["in"]["packets"] > 0)
                assert drops_of(h1, "in") == {}
                assert agent.stop() == 0
        finally:
            pinging.kill()
            h1.start_agent()
            h1.wait_ready()
            wait_for_peers([h1, h2])


def test_what_pods_send_to_multicast_groups_is_no_alarm(fresh: Lab) -> None:
    h1, _, stranger = fresh.hosts
    log = Log(h1)
    h1.configure("route add 224.0.0.251/32 dev flannel0")  # as a multicast router would, towards the overlay
    try:
        h1.run(["ping", "-c", "2", "-i", "0.2", "-W", "1", "224.0.0.251"], check=False)
        wait_for("it is remembered", lambda: bool(dropped(h1, "not_unicast")))
    finally:
        h1.configure("route del 224.0.0.251/32 dev flannel0")
    assert dropped(h1, "not_unicast")[-1]["destination"] == "224.0.0.251"
    alarm = IP(src="10.244.255.1", dst=str(h1.pods[0].ip)) / UDP()
    send_datagrams(stranger, stranger.underlay, h1.underlay, PORT, [bytes(alarm)])
    wait_for("what is said of other reasons", lambda: bool(log.lines("unknown_peer")))
    assert not log.lines("not_unicast")


def test_a_host_that_routes_its_own_datagrams_into_the_overlay_does_not_encapsulate_them_for_ever(fresh: Lab) -> None:
    h1, h2, _ = fresh.hosts
    log = Log(h1)
    h1.configure(f"route add {h2.underlay}/32 dev flannel0")
    try:
        h1.pods[0].run(["ping", "-c", "2", "-i", "0.2", "-W", "1", "-M", "dont", str(h2.pods[0].ip)], check=False)
        wait_for("a line", lambda: bool(log.lines("looped")))
        wait_for("both are counted", lambda: drops_of(h1, "out").get("looped", 0) >= 2)
        counters = h1.control("/v1/status")["counters"]["out"]
        # Each ping, and perhaps an answer to somebody: one datagram each, and each came back once.
        assert 2 <= counters["drops"]["looped"] <= counters["packets"] <= 20
        assert dropped(h1, "looped")[-1]["destination"] == str(h2.underlay)
    finally:
        h1.configure(f"route del {h2.underlay}/32 dev flannel0")


# --- What the kernel drops


@contextmanager
def stopped(host: Host) -> Iterator[None]:
    """Let the host's agent stand still."""
    pid = host.agent_pid()
    assert pid is not None
    freeze(pid)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def kernel_drops(host: Host) -> dict[str, int]:
    drops: dict[str, int] = command_json(host, "status")["kernel_drops"]
    return drops


def test_nothing_is_dropped_before_anything_happens(fresh: Lab) -> None:
    drops = kernel_drops(fresh.hosts[0])
    interfaces = {"interface_queue", "interface_out", "interface_in"}
    assert set(drops) == {"socket", "checksum", "tunnel_out", "tunnel_in", *interfaces}
    assert set(drops.values()) == {0}


def test_what_finds_the_socket_full_is_counted(fresh: Lab) -> None:
    h1, _, stranger = fresh.hosts
    with stopped(h1):
        send_datagrams(stranger, stranger.underlay, h1.underlay, PORT, [bytes(1_400)] * 12_000)
    drops = kernel_drops(h1)
    assert drops["socket"] > 0
    assert "datagrams to our UDP sockets" in command_line(h1, "status").stdout


def test_datagrams_with_a_wrong_checksum_are_counted_though_no_socket_hears_of_them(fresh: Lab) -> None:
    h1, h2, _ = fresh.hosts
    before = kernel_drops(h1)["checksum"]
    datagram = IP(src=str(h2.underlay), dst=str(h1.underlay)) / UDP(sport=PORT, dport=PORT, chksum=0x1234) / bytes(60)
    for _ in range(7):
        send_raw(h2, datagram)
    wait_for("they are counted", lambda: kernel_drops(h1)["checksum"] == before + 7)
    assert "datagrams with a wrong checksum" in command_line(h1, "status").stdout


def test_what_finds_flannel0_full_is_counted(fresh: Lab) -> None:
    h1, h2, _ = fresh.hosts

    def dropped_by_device() -> int:
        (link,) = json.loads(h1.run(["ip", "-json", "-s", "link", "show", "flannel0"]).stdout)
        return int(link["stats64"]["tx"]["dropped"])

    def flood() -> bool:
        send_datagrams(h1, h1.underlay, h2.pods[0].ip, 9, [b"x"] * 2_000)
        return dropped_by_device() >= 1_000

    with stopped(h1):
        wait_for("flannel0 is full", flood)
    before = kernel_drops(h1)["tunnel_out"]
    assert before >= dropped_by_device() >= 1_000
    h1.configure("link del flannel0")
    wait_for("flannel0 is made anew", lambda: "flannel0" in h1.run(["ip", "link"]).stdout)
    assert kernel_drops(h1)["tunnel_out"] >= before


def test_what_the_interfaces_queue_drops_is_counted_though_we_count_it_as_sent(fresh: Lab) -> None:
    h1, h2, _ = fresh.hosts
    h1.run(["tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "1mbit", "burst", "3000", "limit", "6000"])
    try:
        sent_before = h1.control("/v1/status")["counters"]["out"]["packets"]
        send_datagrams(h1, h1.underlay, h2.pods[0].ip, 9, [bytes(1_000)] * 100)
        wait_for("they are sent", lambda: h1.control("/v1/status")["counters"]["out"]["packets"] >= sent_before + 100)
        assert kernel_drops(h1)["interface_queue"] >= 50
    finally:
        h1.run(["tc", "qdisc", "del", "dev", "eth0", "root"])
    assert kernel_drops(h1)["interface_queue"] >= 50


def test_where_the_kernel_carries_packets_the_interfaces_drops_are_told() -> None:
    plan = Plan(fresh_name(), hosts=2, config={"Network": "10.244.0.0/16", "Backend": {"Type": "host-gw"}})
    with Lab(plan) as lab:
        h1, h2 = up_with_peers(lab).hosts
        assert kernel_drops(h1) == {"interface_queue": 0, "interface_out": 0, "interface_in": 0}
        h1.run(["tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "1mbit", "burst", "3000", "limit", "6000"])
        send_datagrams(h1, h1.underlay, h2.pods[0].ip, 9, [bytes(1_000)] * 100)
        wait_for("they are counted", lambda: kernel_drops(h1)["interface_queue"] >= 50)  # first they wait for ARP
        assert "the external interface's queue dropped" in command_line(h1, "status").stdout
