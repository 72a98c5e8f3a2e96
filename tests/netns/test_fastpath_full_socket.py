"""A socket whose buffer is full: packets wait for a neighbour that does not answer, and stay charged to it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network

import pytest
from scapy.layers.inet import IP, UDP

from flannel_udp.dataplane.reference import ReferenceTable
from flannel_udp.lab.netns import call_inside
from flannel_udp.model import Address, Prefix
from flannel_udp.options import NO_OFFLOAD, Offload
from tests.support.engine_rig import EngineRig
from tests.support.labs import NEEDS_NETNS, fresh_name

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
