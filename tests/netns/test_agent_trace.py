"""`trace` tells what becomes of a packet: then the packet is sent, and that is what becomes of it, byte for byte."""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from flannel_udp.admin import client
from flannel_udp.admin.headers import packet_of
from flannel_udp.admin.trace_request import UDP, Said, make_request
from flannel_udp.admin.trace_shapes import Trace, TracePacket
from flannel_udp.agent.trace_packets import with_one_hop_less
from flannel_udp.cli.lab_trace import trace_in_lab
from flannel_udp.errors import FlannelError, UsageError
from flannel_udp.lab import ethtool
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host, Pod
from flannel_udp.lab.plan import OVERLAY, Plan
from tests.support.agents import command_line, drops_of, subnet_of, up_with_peers, wait_for
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.taps import Tap

pytestmark = NEEDS_NETNS

NOWHERE, GROUP, ELSEWHERE = "10.244.255.7", "224.0.0.5", "198.51.100.1"
LARGE_MTU = 3000  # of the pod's veth, so that a packet longer than the overlay's MTU comes to the host whole
NARROW = 1300
# What kernels say to routers and groups of a link at any time, and the agent's own probes of a narrow path.
NOISE = ("not_unicast", "not_ipv4", "not_ipv6", "too_big")
CHECKSUM = "outer UDP checksum"  # left to the network card, which a veth has not


@dataclass(frozen=True)
class Case:
    """A packet of h1/p1, and what `trace` has to say of it."""

    to: str
    verdict: str
    said: Said
    reason: str | None = None
    dropped_by: str | None = None
    source: str = "h1/p1"
    narrow: bool = False
    version: int = 4


def case(
    to: str,
    verdict: str,
    reason: str | None = None,
    by: str | None = None,
    *,
    size: int = 100,
    ttl: int = 64,
    tos: int = 0,
    df: bool = False,
    source: str = "h1/p1",
    narrow: bool = False,
    version: int = 4,
) -> Case:
    said = Said(UDP, size, tos, ttl, df if version == 4 else None)
    return Case(to, verdict, said, reason, by, source, narrow, version)


CASES = {
    "to a peer": case("h2/p1", "delivered"),
    "to a peer, with a congestion mark possible": case("h2/p1", "delivered", tos=0xBA, df=True),
    "to this host's own subnet": case("own", "delivered"),
    "to a subnet that nobody has": case(NOWHERE, "dropped", "no_route", "data path"),
    "to another network": case(ELSEWHERE, "elsewhere"),
    "to a group": case(GROUP, "dropped", None, "host"),
    "larger than the overlay's MTU, not to be cut": case("h2/p1", "dropped", None, "host", size=2000, df=True),
    "larger than the overlay's MTU": case("h2/p1", "delivered", size=2000),
    "larger than the path, not to be cut": case(
        "h2/p1", "dropped", "too_big", "data path", size=1400, df=True, narrow=True
    ),
    "larger than the path": case("h2/p1", "delivered", size=1400, narrow=True),
    "whose TTL the host uses up": case("h2/p1", "dropped", None, "host", ttl=1),
    "whose TTL the tunnel uses up here": case("h2/p1", "dropped", "ttl_expired", "data path", ttl=2),
    "whose TTL the tunnel uses up there": case("h2/p1", "dropped", "ttl_expired", "other host", ttl=3),
    "with a source of the other host's": case("h2/p1", "dropped", "spoofed_source", "other host", source="theirs"),
    "to a peer, IPv6": case("h2/p1", "delivered", version=6),
    "whose hop limit the tunnel uses up, IPv6": case("h2/p1", "dropped", "ttl_expired", "data path", ttl=2, version=6),
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(Plan(fresh_name(), hosts=2, families="46")) as lab:
        up_with_peers(lab)
        widen(lab.hosts[0].pods[0])
        yield lab


def widen(pod: Pod) -> None:
    """Let a pod's packets be longer than the overlay's MTU, and their source be anybody's."""
    pod.configure(f"link set eth0 mtu {LARGE_MTU}")
    pod.host.configure(f"link set {pod.name} mtu {LARGE_MTU}")
    # Or fragments, which the data path sends in one call, would leave by a veth as they were handed over.
    ethtool.set_features(pod.host.namespace, "eth0", dict.fromkeys(ethtool.USO + ethtool.GSO, False))
    pod.host.run(["sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.cni0.rp_filter=0"])


def address_of(lab: Lab, name: str) -> str:
    h1, h2 = lab.hosts
    return {"own": str(subnet_of(h1).network_address + 77), "theirs": str(subnet_of(h2).network_address + 99)}.get(
        name, name
    )


def foretell(lab: Lab, asked: Case, port: int) -> Trace:
    """Return what the agents say of the packet, from this source port on."""
    said = Said(UDP, asked.said.size, asked.said.tos, asked.said.ttl, asked.said.df, port)
    source, to = asked.source, address_of(lab, asked.to)
    if asked.version == 6:
        source = str(lab.hosts[0].pods[0].address(6))
    if source == "theirs":  # a stranger's packet, which is asked about where it would come from
        trace = trace_of(lab, lab.hosts[0], address_of(lab, source), str(lab.hosts[1].pods[0].ip), said)
    else:
        trace = trace_in_lab(lab.name, source, to, said)
    return trace


def trace_of(lab: Lab, host: Host, source: str, to: str, said: Said) -> Trace:
    """Ask both hosts about a packet whose source tells nothing of where it comes from."""
    ends = client.read_addresses([source, to])
    request = make_request(ends[0], ends[1], said)
    trace = client.fetch_trace(host.control_socket, request)
    other = next(each for each in lab.hosts if each is not host)
    arrival = client.fetch_arrival(other.control_socket, str(host.underlay), trace["datagrams"][0])
    if arrival["verdict"] == "dropped":
        trace["verdict"], trace["dropped_by"], trace["reason"] = "dropped", "other host", arrival["reason"]
    return trace


def send_from(pod: Pod, packet: bytes) -> None:
    """Let a pod's packet, whatever it is, come to its gateway."""
    (link,) = json.loads(pod.host.run(["ip", "-json", "link", "show", "cni0"]).stdout)
    mac, ethertype = bytes.fromhex(link["address"].replace(":", "")), 0x0800 if packet[0] >> 4 == 4 else 0x86DD
    with pod.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as sock:
        sock.sendto(packet, ("eth0", ethertype, 0, 0, mac))


def drops(host: Host, direction: str) -> Counter[str]:
    return Counter({reason: n for reason, n in drops_of(host, direction).items() if reason not in NOISE})


def count_lost(host: Host, direction: str, foretold: Trace) -> Counter[str]:
    """Return the drops by reason, but for the agent's own probes of the path, which may be lost beside our packet."""
    counted, reason = drops(host, direction), foretold["reason"]
    if reason == "too_big":
        rows = host.control("/v1/status")["last_dropped"].get(reason, [])
        counted[reason] = sum(row["protocol"] == UDP for row in rows)
    return counted


def masked(packet: bytes, like: TracePacket) -> bytes:
    """Return a packet without what the kernel chooses, or leaves to a card."""
    blanked = bytearray(packet)
    for header in like["headers"]:
        for field in header["fields"]:
            if field["hex"] is None or f"{header['name']} {field['name']}" == CHECKSUM:
                end = field["offset"] + field["bytes"]
                blanked[field["offset"] : end] = bytes(field["bytes"])
    return bytes(blanked)


@pytest.mark.parametrize("name", CASES)
def test_a_packet_fares_as_was_foretold(lab: Lab, name: str) -> None:
    h1, h2 = lab.hosts
    asked, port = CASES[name], 41_000 + list(CASES).index(name)
    if asked.narrow:
        h1.configure(f"route add {h2.underlay} dev eth0 mtu {NARROW}")
    try:
        before = drops(h1, "out"), drops(h2, "in")
        foretold = foretell(lab, asked, port)
        assert (drops(h1, "out"), drops(h2, "in")) == before  # asking costs nothing
        assert (foretold["verdict"], foretold["reason"], foretold["dropped_by"]) == (
            asked.verdict,
            asked.reason,
            asked.dropped_by,
        ), foretold["why"]
        fares_as_foretold(lab, foretold, port, before)
    finally:
        if asked.narrow:
            h1.configure(f"route del {h2.underlay} dev eth0")


def fares_as_foretold(lab: Lab, foretold: Trace, port: int, before: tuple[Counter[str], Counter[str]]) -> None:
    h1, h2 = lab.hosts
    packet = bytes.fromhex(foretold["packet"]["hex"])
    version, head = packet[0] >> 4, 20 if packet[0] >> 4 == 4 else 40
    mark = packet[head : head + 28]  # ports, length, checksum, and some payload
    lost = Counter({foretold["reason"]: 1} if foretold["reason"] else {})
    with Tap(h2, "eth0") as wire, Tap(h2.pods[0], "eth0") as pod:
        send_from(h1.pods[0], packet)
        on_wire: list[bytes] = []
        in_pod: list[bytes] = []

        def looks_right() -> bool:
            on_wire.extend(seen for seen in wire.packets(version))
            in_pod.extend(seen for seen in pod.packets(version) if mark in seen)
            out, in_ = count_lost(h1, "out", foretold) - before[0], drops(h2, "in") - before[1]
            fragments_come = all(sent["fragmentable"] for sent in foretold["datagrams"])
            return (
                out == (lost if foretold["dropped_by"] == "data path" else Counter())
                and in_ == (lost if foretold["dropped_by"] == "other host" else Counter())
                and (fragments_come or all(is_among(each, on_wire) for each in foretold["datagrams"]))
                and bool(in_pod) == ("arrival" in foretold and foretold["verdict"] == "delivered")
            )

        wait_for(f"{foretold['verdict']}: {foretold['why']}", looks_right)
        arrival = foretold.get("arrival")
        if arrival and arrival["packet"] and foretold["verdict"] == "delivered" and len(foretold["datagrams"]) == 1:
            assert with_one_hop_less(bytes.fromhex(arrival["packet"]["hex"])) in in_pod
        if not foretold["datagrams"]:
            sentinel(lab, port)
            on_wire.extend(wire.packets(version))
            tunnelled = [seen for seen in on_wire if mark in seen and packet_is_outer(seen)]
            assert tunnelled == []


def is_among(sent: Any, seen: list[bytes]) -> bool:
    return masked(bytes.fromhex(sent["hex"]), sent) in [masked(each, sent) for each in seen]


def packet_is_outer(packet: bytes) -> bool:
    return "outer UDP" in [header["name"] for header in packet_of(packet, "udp")["headers"]] and packet[22:24] == b" ]"


def sentinel(lab: Lab, port: int) -> None:
    """Return once a packet that was sent later has arrived."""
    h1, h2 = lab.hosts
    later = trace_in_lab(lab.name, "h1/p1", "h2/p1", Said(UDP, source_port=port, destination_port=9))
    packet = bytes.fromhex(later["packet"]["hex"])
    with Tap(h2.pods[0], "eth0") as pod:
        send_from(h1.pods[0], packet)
        wait_for("a later packet", lambda: any(packet[20:48] in seen for seen in pod.packets()))


# With other backends


@pytest.fixture(scope="module")
def vxlan() -> Iterator[Lab]:
    config = {"Network": str(OVERLAY), "Backend": {"Type": "vxlan"}}
    datapaths = {"h1": ("--datapath=kernel",), "h2": ("--datapath=userspace",)}
    with Lab(Plan(fresh_name(), hosts=2, config=config, host_args=datapaths)) as lab:
        yield up_with_peers(lab)


@pytest.mark.parametrize(("source", "to", "carrier"), [(0, 1, "kernel"), (1, 0, "data path")])
def test_vxlan_by_the_kernel_and_by_us_leaves_as_was_foretold(vxlan: Lab, source: int, to: int, carrier: str) -> None:
    here, there = vxlan.hosts[source], vxlan.hosts[to]
    foretold = trace_in_lab(vxlan.name, f"{here.name}/p1", f"{there.name}/p1", Said(UDP, 100))
    assert (foretold["verdict"], foretold["carrier"]) == ("delivered", carrier)
    (sent,) = foretold["datagrams"]
    names = [header["name"] for header in sent["headers"]]
    assert names == ["outer IPv4", "outer UDP", "VXLAN", "inner Ethernet", "inner IPv4", "inner UDP"]
    assert foretold["arrival"]["carrier"] == ("data path" if carrier == "kernel" else "kernel")
    if carrier == "kernel":
        assert [entry["present"] for entry in foretold["entries"]] == [True, True]
        assert f"dst {there.underlay} self permanent" in foretold["entries"][1]["entry"]
    with Tap(there, "eth0") as wire:
        send_from(here.pods[0], bytes.fromhex(foretold["packet"]["hex"]))
        on_wire: list[bytes] = []

        def has_come() -> bool:
            on_wire.extend(wire.packets())
            return is_among(sent, on_wire)

        wait_for("the datagram", has_come)


def test_a_kernel_without_its_forwarding_entry_is_said_to_drop_the_packet(vxlan: Lab) -> None:
    h1, h2 = vxlan.hosts
    _, mac, _, device, *_ = trace_in_lab(vxlan.name, "h1/p1", "h2/p1", Said())["entries"][1]["entry"].split()

    def is_said() -> bool:
        trace = trace_in_lab(vxlan.name, "h1/p1", "h2/p1", Said())
        return trace["verdict"] == "dropped" and trace["dropped_by"] == "host" and mac in trace["why"]

    # Whoever does this again and again has the agent wait between its repairs.
    delete = f"bridge fdb del {mac} dev {device} dst {h2.underlay}"
    with h1.popen(["sh", "-c", f"while :; do {delete} 2>/dev/null; sleep 0.1; done"]) as daemon:
        try:
            wait_for("it is asked before the agent has put it back", is_said)
        finally:
            daemon.kill()
    wait_for("it is put back", lambda: trace_in_lab(vxlan.name, "h1/p1", "h2/p1", Said())["verdict"] == "delivered")


def test_host_gw_is_told_to_go_by_the_kernels_route_as_it_is() -> None:
    config = {"Network": str(OVERLAY), "Backend": {"Type": "host-gw"}}
    with Lab(Plan(fresh_name(), hosts=2, config=config)) as lab:
        h1, h2 = up_with_peers(lab).hosts
        foretold = trace_in_lab(lab.name, "h1/p1", "h2/p1", Said(UDP, 100, ttl=9))
        assert (foretold["verdict"], foretold["carrier"], foretold["checks"]) == ("delivered", "kernel", [])
        assert foretold["host"]["route"].startswith(f"{subnet_of(h2)} via {h2.underlay} dev eth0")
        (sent,) = foretold["datagrams"]
        with Tap(h2, "eth0") as wire:
            send_from(h1.pods[0], bytes.fromhex(foretold["packet"]["hex"]))
            wait_for("it comes as it is", lambda: bytes.fromhex(sent["hex"]) in wire.packets())
        assert trace_in_lab(lab.name, "h1/p1", NOWHERE, Said())["verdict"] in ("elsewhere", "dropped")


# What is shown, and what goes wrong


def test_the_command_tells_it_in_lines_that_fit_and_exits_1_where_the_packet_is_lost(lab: Lab) -> None:
    h1, h2 = lab.hosts
    ends = (str(h1.pods[0].ip), str(h2.pods[0].ip))
    sent = command_line(h1, "trace", *ends, "--proto=tcp", "--dport=80")
    assert (sent.returncode, sent.stderr) == (0, "")
    assert max(map(len, sent.stdout.splitlines())) <= 80
    for part in ("ok a lease covers the destination", f"peer {h2.underlay}", "destination port: 80", "flags: SYN"):
        assert part in sent.stdout
    lost = command_line(h1, "trace", ends[0], NOWHERE)
    assert (lost.returncode, "NO a lease covers the destination (no_route)" in lost.stdout) == (1, True)


@pytest.mark.parametrize(
    ("ends", "line"),
    [
        (("h1/p1", "h3/p1"), "h3"),
        (("h1/p1", "h2/p7"), "h2 has no pod p7"),
        (("h1/p1", "fd00::1:2:3:4:5:6:7:8"), "fd00"),
        (("9.9.9.9", "h2/p1"), "no host of the lab"),
    ],
)
def test_what_is_not_in_the_lab_is_named(lab: Lab, ends: tuple[str, str], line: str) -> None:
    with pytest.raises(FlannelError, match=line):
        trace_in_lab(lab.name, *ends, Said())


def test_ends_of_two_families_are_no_packet(lab: Lab) -> None:
    with pytest.raises(UsageError, match="no packet has one end of each"):
        trace_in_lab(lab.name, str(lab.hosts[0].pods[0].ip), str(lab.hosts[1].pods[0].address(6)), Said())
