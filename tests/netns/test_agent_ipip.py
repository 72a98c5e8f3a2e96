"""IP in IP by our own packet path, between real agents: in every byte, and what becomes of it in an agent's life."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, UDP, IPOption_NOP, fragment

from flannel_udp.dataplane.reference import fault_of
from flannel_udp.files import subnet_env
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, Plan
from flannel_udp.lab.probe import ping, tcp_rate
from tests.support.agents import (
    Agent,
    Log,
    drops_of,
    log_of,
    move_address,
    peers_of,
    pid_of,
    remains_of,
    restart_agents,
    subnet_of,
    unanswered,
    up_with_peers,
    wait_for,
)
from tests.support.by_hand import by_hand
from tests.support.flow import Flow
from tests.support.kernel_state import kernel_state, ours_of
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import PATIENCE_S
from tests.support.taps import Tap
from tests.support.transfer import Transfer

pytestmark = NEEDS_NETNS

CONFIG = {"Network": str(OVERLAY), "Backend": {"Type": "ipip"}}
USERSPACE = "--datapath=userspace"
PROTOCOL = 4
MOVED_TO = "192.0.2.77"
FEW = 20
TRANSFER_BYTES = 4 << 20


@pytest.fixture(scope="module")
def trio() -> Iterator[Lab]:
    """Three hosts whose tests end as they began; no card keeps packets joined, so a capture shows the wire."""
    plan = Plan(fresh_name(), hosts=3, config=CONFIG, agent_args=(USERSPACE,), offload="plain")
    with Lab(plan) as lab:
        yield up_with_peers(lab)


def outer_packets(tap: Tap) -> list[IP]:
    return [packet for packet in map(IP, tap.packets()) if packet.proto == PROTOCOL]


# What others see


def test_the_lease_the_device_and_subnet_env_are_flannels(trio: Lab) -> None:
    h1 = trio.hosts[0]
    subnet = subnet_of(h1)
    entry = by_hand(trio).subnets()[str(subnet).replace("/", "-")]
    said = {key: value for key, value in json.loads(entry).items() if key not in ("Expires", "Owner")}
    assert said == {"PublicIP": "192.0.2.1", "PublicIPv6": None, "BackendType": "ipip"}
    (link,) = json.loads(h1.run(["ip", "-json", "-d", "address", "show", "dev", "flannel.ipip"]).stdout)
    assert (link["mtu"], link["linkinfo"]["info_kind"]) == (1_480, "tun")
    assert [(each["local"], each["prefixlen"]) for each in link["addr_info"]] == [(str(subnet[0]), 32)]
    assert h1.run(["ip", "route", "show", "dev", "flannel.ipip"]).stdout.split()[0] == str(OVERLAY)
    assert subnet_env.require(h1.subnet_file).mtu == 1_480
    status = h1.control("/v1/status")
    assert (status["backend"]["type"], status["backend"]["datapath"]) == ("ipip", "userspace")
    assert "port" not in status["backend"]
    assert status["tunnel"] == {"name": "flannel.ipip", "address": f"{subnet[0]}/32", "mtu": 1_480}
    assert status["problems"] == []


def test_all_pods_reach_all(trio: Lab) -> None:
    assert unanswered(trio.pods()) == []


def test_every_outer_packet_is_a_plain_header_and_an_inner_packet(trio: Lab) -> None:
    ours, theirs, _ = trio.pods()
    with Tap(trio.hosts[1], "eth0") as wire:
        ours.run(["ping", "-c3", "-i0.1", "-s", "1452", str(theirs.ip)])
        theirs.run(["ping", "-c3", "-i0.1", "-s", "3000", str(ours.ip)])
        tcp_rate(ours, theirs, theirs.ip, duration_s=0.1)
        outer = outer_packets(wire)
    assert len(outer) > 20
    for packet in outer[:200] + outer[-200:]:
        assert (packet.ihl, packet.flags.DF, packet.flags.MF, packet.frag, packet.tos & ~3) == (5, True, False, 0, 0)
        assert packet.len == 20 + packet.payload.len <= 1_500
        assert fault_of(bytes(packet.payload)) is None
        again = packet.payload.copy()
        if again.proto in (6, 17) and not again.frag and not again.flags.MF:  # what a foreign peer checks, too
            del again.chksum
            del again.payload.chksum
            assert bytes(again) == bytes(packet.payload)


@pytest.mark.parametrize("cards", ["whole", "wire", "plain"])
def test_tcp_flows_both_ways_whatever_the_cards_do(cards: str) -> None:
    with Lab(Plan(fresh_name(), hosts=2, config=CONFIG, agent_args=(USERSPACE,), offload=cards)) as lab:
        up_with_peers(lab)
        one, other = lab.pods()
        with Transfer(one, other, TRANSFER_BYTES), Transfer(other, one, TRANSFER_BYTES):
            pass
        for host in lab.hosts:
            assert drops_of(host, "in") == {}


def test_ecn_marks_cross_the_tunnel(trio: Lab) -> None:
    ours, theirs, _ = trio.pods()
    with Tap(trio.hosts[1], "eth0") as wire:
        ours.run(["ping", "-c1", "-Q", "0x2", str(theirs.ip)])
        outer = [packet for packet in outer_packets(wire) if packet.payload.dst == str(theirs.ip)]
    assert {(packet.tos, packet.payload.tos) for packet in outer} == {(2, 2)}


# What comes in is held to the rules


def raw_from(host: Host, outer: IP) -> None:
    """Let a host send an outer packet of our making."""
    with host.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        sock.sendto(bytes(outer), (outer.dst, 0))


@pytest.mark.parametrize(
    ("inner", "reason"),
    [
        (b"", "too_short"),
        (b"\x45", "too_short"),
        (bytes(19), "too_short"),
        (b"\x60" + bytes(39), "not_ipv4"),
        (b"\x44" + bytes(39), "bad_header_len"),
        (bytes(IP(src="10.244.9.1", dst="10.244.9.2", len=900) / UDP() / bytes(20)), "bad_total_len"),
    ],
)
def test_what_is_no_inner_packet_is_one_counted_drop(trio: Lab, inner: bytes, reason: str) -> None:
    h1, h2 = trio.hosts[:2]
    before = sum(drops_of(h1, "in").values())
    raw_from(h2, IP(src=str(h2.underlay), dst=str(h1.underlay), proto=PROTOCOL) / inner)
    wait_for("it is counted", lambda: sum(drops_of(h1, "in").values()) == before + 1)
    assert reason in drops_of(h1, "in"), drops_of(h1, "in")


def test_options_in_the_outer_header_are_one_counted_drop_and_fragments_are_put_together(trio: Lab) -> None:
    h1, h2 = trio.hosts[:2]
    before = drops_of(h1, "in").get("bad_outer_header", 0)
    payload = bytes(range(200)) * 10
    inner = IP(src=str(subnet_of(h2)[2]), dst=str(h1.pods[0].ip)) / UDP(sport=7, dport=9_001)
    outer = IP(src=str(h2.underlay), dst=str(h1.underlay), proto=PROTOCOL, id=77)
    raw_from(h2, IP(src=outer.src, dst=outer.dst, proto=PROTOCOL, options=[IPOption_NOP()] * 4) / inner)
    wait_for("it is counted", lambda: drops_of(h1, "in").get("bad_outer_header", 0) == before + 1)
    with h1.pods[0].socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((str(h1.pods[0].ip), 9_001))
        sock.settimeout(PATIENCE_S)
        for part in fragment(outer / inner / payload, fragsize=800):  # type: ignore[no-untyped-call]
            raw_from(h2, part)
        assert sock.recv(4_000) == payload
    assert drops_of(h1, "in").get("bad_outer_header", 0) == before + 1


def test_a_stranger_and_a_liar_are_told_apart_from_peers(trio: Lab) -> None:
    h1, h2, h3 = trio.hosts
    before = drops_of(h1, "in")
    lie = IP(src=str(subnet_of(h3)[2]), dst=str(subnet_of(h1)[2])) / UDP(sport=7, dport=8)
    raw_from(h2, IP(src=str(h2.underlay), dst=str(h1.underlay), proto=PROTOCOL) / lie)
    raw_from(h2, IP(src="192.0.2.200", dst=str(h1.underlay), proto=PROTOCOL) / lie)
    expected = {reason: before.get(reason, 0) + 1 for reason in ("spoofed_source", "unknown_peer")}
    wait_for("both are counted", lambda: expected.items() <= drops_of(h1, "in").items())


# Its life


def test_a_take_over_loses_nothing(trio: Lab) -> None:
    h1, h2 = trio.hosts[:2]
    old = pid_of(h1)
    with Flow(h1.pods[0], h2.pods[0]) as out, Flow(h2.pods[0], h1.pods[0]) as back:
        out.wait_for_one_sent_from_now()
        with Agent(h1, "--takeover", USERSPACE) as agent:
            agent.wait_for_take_over(old)
            out.wait_for_one_sent_from_now()
            back.wait_for_one_sent_from_now()
            out.end()
            back.end()
            assert agent.stop() == 0
            assert remains_of(h1) == {"subnet.env"}
    h1.start_agent()
    h1.wait_ready()
    up_with_peers(trio)
    assert (out.missing, back.missing) == ([], [])


def test_a_restart_keeps_the_subnet_and_peers_hear_meanwhile_that_nobody_is_there(trio: Lab) -> None:
    h1, h2 = trio.hosts[:2]
    subnet = subnet_of(h1)
    h1.kill_agent()
    ping(h2.pods[0], [h1.pods[0].ip], timeout_s=0.2)

    def error() -> str:
        (row,) = [row for row in h2.control("/v1/peers") if row["subnet"] == str(subnet)]
        return row["error"] or ""

    wait_for("the kernel says so", lambda: error() == f"protocol unreachable, says {h1.underlay}")
    h1.start_agent()
    h1.wait_ready()
    up_with_peers(trio)
    assert subnet_of(h1) == subnet
    assert unanswered([h1.pods[0], h2.pods[0]]) == []
    wait_for("nothing is wrong", lambda: h2.control("/v1/status")["problems"] == [])


def test_a_deleted_device_comes_back(trio: Lab) -> None:
    h1, h2 = trio.hosts[:2]
    log = Log(h1)
    h1.configure("link del flannel.ipip")
    wait_for("traffic", lambda: ping(h1.pods[0], [h2.pods[0].ip], timeout_s=0.3) != [None])
    assert log.lines("anew") == ["flannel.ipip was deleted or broke: made it anew"]


def test_another_address_of_the_interface_is_received_at(trio: Lab) -> None:
    h1, h2 = trio.hosts[:2]
    subnet = str(subnet_of(h1))
    move_address(h1, h1.underlay, MOVED_TO)
    wait_for("the others know", lambda: peers_of(h2).get(subnet) == MOVED_TO)
    wait_for("traffic", lambda: ping(h2.pods[0], [h1.pods[0].ip], timeout_s=0.3) != [None])
    move_address(h1, MOVED_TO, h1.underlay)
    wait_for("the others know", lambda: peers_of(h2).get(subnet) == str(h1.underlay))
    wait_for("traffic", lambda: ping(h2.pods[0], [h1.pods[0].ip], timeout_s=0.3) != [None])


def test_a_narrow_path_is_learnt_by_icmp(trio: Lab) -> None:
    h1, h2 = trio.hosts[:2]
    h1.configure(f"route add {h2.underlay} dev eth0 mtu 1400")
    try:
        found = h1.pods[0].run(["ping", "-c2", "-i0.2", "-M", "do", "-s", "1400", str(h2.pods[0].ip)], check=False)
        assert "mtu=1380" in found.stdout + found.stderr or "mtu = 1380" in found.stdout + found.stderr
        h1.pods[0].run(["ping", "-c1", "-M", "do", "-s", "1352", str(h2.pods[0].ip)])
    finally:
        h1.configure(f"route del {h2.underlay}")


def test_what_a_slow_link_holds_fills_a_lane_and_no_memory(trio: Lab) -> None:
    h1, h2 = trio.hosts[:2]
    h1.run(["tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "1mbit", "burst", "3000", "limit", "10000000"])
    try:
        with h1.pods[0].socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for _ in range(3_000):
                sock.sendto(bytes(1_000), (str(h2.pods[0].ip), 9))
        wait_for("a full lane", lambda: "queue_full" in drops_of(h1, "out"))
        assert "no_memory" not in drops_of(h1, "out")
    finally:
        h1.run(["tc", "qdisc", "del", "dev", "eth0", "root"])
    wait_for("traffic", lambda: ping(h1.pods[0], [h2.pods[0].ip], timeout_s=0.3) != [None])


@pytest.mark.parametrize("workers", [2])
def test_several_workers_carry_each_packet_once(workers: int) -> None:
    plan = Plan(fresh_name(), hosts=3, config=CONFIG, agent_args=(USERSPACE, f"--workers={workers}"))
    with Lab(plan) as lab:
        up_with_peers(lab)
        assert unanswered(lab.pods()) == []
        one, other, _ = lab.pods()
        with Transfer(one, other, TRANSFER_BYTES):
            pass
        # Not by ping, which waits for the last answer no longer than twice the longest so far.
        with Flow(one, other) as there, Flow(other, one) as back:
            wait_for("some have arrived", lambda: min(there.newest, back.newest) >= FEW)
        assert [(flow.lost, flow.doubled) for flow in (there, back)] == [(0, 0)] * 2


def test_direct_routing_takes_the_tunnel_out_of_the_way_of_hosts_on_the_link() -> None:
    backend = {"Type": "ipip", "DirectRouting": True}
    config = {"Network": str(OVERLAY), "Backend": backend}
    with Lab(Plan(fresh_name(), hosts=2, config=config, agent_args=(USERSPACE,))) as lab:
        up_with_peers(lab)
        h1, h2 = lab.hosts

        def is_direct(host: Host, other: Host) -> bool:
            return any(line.startswith(f"{subnet_of(other)} via {other.underlay} dev eth0") for line in ours_of(host))

        wait_for("the routes", lambda: is_direct(h1, h2) and is_direct(h2, h1))
        with Tap(h2, "eth0") as wire:
            assert unanswered(lab.pods()) == []
            assert outer_packets(wire) == []
        by_hand(lab).choose_backend("ipip")
        restart_agents(lab.hosts)
        wait_for("nothing is left of it", lambda: ours_of(h1) == [])
        assert unanswered(lab.pods()) == []


# What cannot be had


@pytest.fixture
def host() -> Iterator[Host]:
    with Lab(Plan(fresh_name(), hosts=1, agents=(), config=CONFIG)) as lab:
        yield lab.hosts[0]


def test_a_device_of_that_name_that_is_another_programs_is_named(host: Host) -> None:
    host.configure("link add flannel.ipip type bridge")
    with Agent(host, USERSPACE) as agent:
        assert agent.exit_code() == 1
        assert any("flannel.ipip is another program's" in line for line in agent.said()), agent.said()
    assert "link flannel.ipip" in kernel_state(host)


def test_without_the_right_to_open_raw_sockets_it_is_one_line(host: Host) -> None:
    drop = ("setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw")
    with Agent(host, USERSPACE, wrapper=drop) as agent:
        assert agent.exit_code() == 1
        (line,) = [line for line in agent.said() if line.startswith("flannel-udp: ")]
        assert "CAP_NET_RAW" in line


def test_the_kernels_datapath_where_the_kernel_has_none_is_one_line(host: Host) -> None:
    with Agent(host, "--datapath=kernel") as agent:
        assert agent.exit_code() == 1
        (line,) = [line for line in agent.said() if line.startswith("flannel-udp: ")]
        assert "this kernel has no ipip" in line
    assert log_of(host)
    assert by_hand(Lab(host.plan)).subnets() == {}
