"""A socket whose buffer is full: packets wait for a neighbour that does not answer, and stay charged to it.

Or one that must not be full for that: the raw one for ICMP answers.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, ip_address

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6

from flannel_udp._fastpath.routes import PEERS_FROM
from flannel_udp.dataplane.reference import ReferenceTable
from flannel_udp.dataplane.underlay import ANSWERS_BYTES, adopt_icmp, granted_buffers, open_icmp
from flannel_udp.lab.netns import call_inside
from flannel_udp.model import Address, Prefix
from flannel_udp.options import NO_OFFLOAD, Offload
from tests.support.engine_rig import PEERS, EngineRig, small_table
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import PATIENCE_S

HERE, SILENT, LIVE = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.9"), IPv4Address("192.0.2.2")
RUN_PACKETS = 64
N_PACKETS = 10 * RUN_PACKETS

pytestmark = NEEDS_NETNS


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@pytest.fixture
def name() -> Iterator[str]:
    """A namespace with one interface, and nobody on its wire."""
    name = f"fu-{fresh_name()}"
    ip("netns", "add", name)
    try:
        ip("-n", name, "link", "add", "wire", "type", "veth", "peer", "name", "far-end")
        ip("-n", name, "addr", "add", f"{HERE}/24", "dev", "wire")
        ip("-n", name, "link", "set", "wire", "up")
        ip("-n", name, "link", "set", "far-end", "up")
        yield name
    finally:
        ip("netns", "del", name)


@pytest.mark.parametrize(("offload", "run"), [(NO_OFFLOAD, 1), (Offload(), RUN_PACKETS)], ids=["one by one", "in runs"])
def test_a_full_socket_costs_whole_runs_each_packet_counted_and_no_spinning(
    name: str, offload: Offload, run: int
) -> None:
    table = ReferenceTable(routes={IPv4Network("10.1.2.0/24"): SILENT}, own_address=IPv4Address("10.1.1.0"))

    def check() -> None:
        with EngineRig(table, peers=(), offload=offload, agent=HERE) as rig:
            rig.shrink_send_buffer()
            for number in range(N_PACKETS):
                rig.from_tun(bytes(IP(src="10.1.1.5", dst="10.1.2.7", id=number) / UDP() / bytes(100)))
            rig.poll()
            counters = rig.counters("out")
            assert counters["drops"].keys() == {"queue_full"}
            assert counters["packets"] + counters["drops"]["queue_full"] == N_PACKETS
            assert (counters["packets"] % run, counters["packets"] > 0) == (0, True)
            assert rig.engine.counters()["system_calls"]["udp_sends"] <= N_PACKETS // run + N_PACKETS // RUN_PACKETS

            # Somebody answers at last: the waiting packets leave, and the next ones do too.
            ip("-n", name, "neigh", "replace", str(SILENT), "lladdr", "02:00:00:00:00:09", "dev", "wire")
            rig.from_tun(bytes(IP(src="10.1.1.5", dst="10.1.2.7") / UDP()))
            rig.poll()
            assert rig.counters("out")["packets"] == counters["packets"] + 1

    call_inside(name, check)


@pytest.mark.parametrize("offload", [NO_OFFLOAD, Offload()], ids=["one by one", "in runs"])
def test_a_peer_that_never_answers_costs_another_peer_nothing(name: str, offload: Offload) -> None:
    routes: dict[Prefix, Address | str] = {
        IPv4Network("10.1.2.0/24"): SILENT,
        IPv4Network("10.1.3.0/24"): LIVE,
    }
    table = ReferenceTable(routes=routes, own_address=IPv4Address("10.1.1.0"))
    ip("-n", name, "addr", "add", f"{LIVE}/24", "dev", "wire")
    ip("-n", name, "link", "set", "lo", "up")

    def check() -> None:
        with EngineRig(table, peers=(str(LIVE),), offload=offload, agent=HERE, lanes=True) as rig:
            rig.shrink_send_buffer()
            for number in range(N_PACKETS):
                for target in ("10.1.2.7", "10.1.3.7"):
                    rig.from_tun(bytes(IP(src="10.1.1.5", dst=target, id=number) / UDP() / bytes(100)))
                if number % 10 == 9:
                    rig.poll()
            assert [IP(got).id for got in rig.to_peer(str(LIVE))] == list(range(N_PACKETS))
            sent_to_silent, lost = rig.counters("out")["packets"] - N_PACKETS, rig.drops("out")["queue_full"]
            assert (sent_to_silent + lost, lost > 0) == (N_PACKETS, True)
            assert rig.poll() == 0

    call_inside(name, check)


# The socket for ICMP answers

PODS = {4: "10.1.1", 6: "fd00:10:244:1:"}
UNASSIGNED = {4: "10.1.9.9", 6: "fd00:10:244:9::9"}
PEERS_POD = {4: "10.1.2.9", 6: "fd00:10:244:2::9"}
POD = 250  # the one there is
FLOOD, BATCH = 300, 40
"""So many answers are more than a default buffer holds, some 256; the kernel waits 3 s for an address."""
FEW = 10
PATH_MTU = 1_300


def packet(version: int, pod: int, to: str, size: int) -> bytes:
    if version == 6:
        return bytes(IPv6(src=f"{PODS[6]}:{pod}", dst=to) / UDP() / bytes(size - 48))
    return bytes(IP(src=f"{PODS[4]}.{pod}", dst=to, flags="DF") / UDP() / bytes(size - 28))


def set_up_pods(version: int) -> None:
    """In the namespace that we are in: the subnet is on the wire, with one pod that needs no question."""
    pods, between = PODS[version], "." if version == 4 else ":"
    ip("link", "set", "lo", "up")
    nodad = ("nodad",) if version == 6 else ()
    ip("addr", "add", f"{pods}{between}1/{24 if version == 4 else 64}", "dev", "wire", *nodad)
    ip("neigh", "add", f"{pods}{between}{POD}", "lladdr", "02:00:00:00:00:01", "dev", "wire")


@pytest.mark.parametrize("version", [4, 6])
def test_answers_that_wait_for_addresses_that_nobody_has_keep_no_others_back(name: str, version: int) -> None:
    def check() -> None:
        set_up_pods(version)
        with open_icmp(version, 1) as icmp, EngineRig(small_table(version=version), icmp_fd=icmp.fileno()) as rig:
            rig.engine.limit_path_mtu(PEERS_FROM, int(ip_address(PEERS[version][0])), PATH_MTU)
            deadline_s = time.monotonic() + PATIENCE_S
            number = 0
            while rig.engine.counters()["icmp"]["sent"] <= FLOOD:
                assert time.monotonic() < deadline_s
                for _ in range(BATCH):
                    rig.from_tun(packet(version, 10 + number % 230, UNASSIGNED[version], 100))
                    number += 1
                rig.poll()
            for _ in range(FEW):
                rig.from_tun(packet(version, POD, PEERS_POD[version], PATH_MTU + 1))
            rig.poll()
            assert rig.drops("out")["too_big"] == FEW
            assert rig.engine.counters()["icmp"]["failed"] == 0

    call_inside(name, check)


def test_a_socket_for_answers_that_an_earlier_version_opened_gets_room_for_them_too(name: str) -> None:
    def check() -> None:
        former = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        with former, adopt_icmp(os.dup(former.fileno()), 2):
            assert granted_buffers(former).send_bytes == 2 * ANSWERS_BYTES

    call_inside(name, check)
