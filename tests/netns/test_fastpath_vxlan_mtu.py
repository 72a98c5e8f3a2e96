"""A narrow path and VXLAN: of what it carries 50 bytes are the tunnel's. The way to 127.0.0.2 carries 1,000 bytes."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, UDP

from flannel_udp.dataplane import reference
from flannel_udp.lab.netns import call_inside
from flannel_udp.options import NO_OFFLOAD, Offload
from tests.support.engine_rig import VXLAN, EngineRig, small_table
from tests.support.labs import NEEDS_NETNS, empty_namespace

PATH_MTU = 1_000
INNER_MTU = PATH_MTU - 50
HEADING = reference.encapsulated(b"", IPv4Address("127.0.0.2"), small_table(VXLAN))

pytestmark = [
    *NEEDS_NETNS,
    pytest.mark.parametrize("offload", [NO_OFFLOAD, Offload()], ids=["one by one", "in runs"]),
]


def packet(size: int, number: int = 0, **fields: Any) -> bytes:
    return bytes(IP(src="10.1.1.5", dst="10.1.2.7", id=number, **fields) / UDP() / bytes(size - 28))


@pytest.fixture
def namespace() -> Iterator[str]:
    with empty_namespace("ip link set lo up") as name:
        route = f"local 127.0.0.2 dev lo mtu lock {PATH_MTU} table local"
        subprocess.run(["ip", "-n", name, "route", "replace", *route.split()], check=True)
        yield name


def test_what_may_not_be_fragmented_is_told_what_would_fit_beside_the_heading(offload: Offload, namespace: str) -> None:
    def check() -> None:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as icmp,
            socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as pod,
            EngineRig(small_table(VXLAN), offload=offload, icmp_fd=icmp.fileno()) as rig,
        ):
            subprocess.run(["ip", "addr", "add", "10.1.1.5/32", "dev", "lo"], check=True)
            pod.settimeout(10.0)
            rig.from_tun(packet(1_400, flags="DF"))
            rig.poll()
            assert IP(pod.recv(1_500))[ICMP].nexthopmtu == INNER_MTU
            sends = rig.engine.counters()["system_calls"]["udp_sends"]
            rig.from_tun(packet(INNER_MTU + 1, flags="DF"))
            rig.poll()
            assert rig.engine.counters()["system_calls"]["udp_sends"] == sends
            rig.from_tun(packet(INNER_MTU, flags="DF"))
            rig.poll()
            assert rig.to_peer("127.0.0.2") == [HEADING + packet(INNER_MTU, flags="DF")]
            assert rig.drops("out") == {"too_big": 2}

    call_inside(namespace, check)


def test_what_may_be_fragmented_arrives_whole(offload: Offload, namespace: str) -> None:
    def check() -> None:
        with EngineRig(small_table(VXLAN), offload=offload) as rig:
            for number in range(5):
                rig.from_tun(packet(1_400, number))
            rig.poll()
            assert rig.to_peer("127.0.0.2") == [HEADING + packet(1_400, number) for number in range(5)]
            assert rig.counters("out") == {"packets": 5, "bytes": 7_000, "drops": {}}

    call_inside(namespace, check)


def test_what_the_agents_probes_found_is_kept_by_inner_fragments_each_behind_a_heading(
    offload: Offload, namespace: str
) -> None:
    def check() -> None:
        with EngineRig(small_table(VXLAN), offload=offload) as rig:
            rig.engine.limit_path_mtu(2, int(IPv4Address("127.0.0.2")), 800)
            rig.from_tun(packet(1_400, 7))
            rig.from_tun(packet(801, flags="DF"))
            rig.poll()
            got = rig.to_peer("127.0.0.2")
            assert {datagram[: len(HEADING)] for datagram in got} == {HEADING}
            fragments = [IP(datagram[len(HEADING) :]) for datagram in got]
            assert [(each.id, len(each), each.frag) for each in fragments] == [(7, 796, 0), (7, 624, 97)]
            assert rig.drops("out") == {"too_big": 1}

    call_inside(namespace, check)
