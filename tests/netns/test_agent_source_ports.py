"""`--source-ports`: the underlay sees the flows of two hosts apart, and the other host need not know."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.probe import ping_matrix, tcp_rate
from tests.support.agents import unanswered, wait_for
from tests.support.flow import Flow
from tests.support.labs import NEEDS_NETNS
from tests.support.mixed import mixed_lab
from tests.support.taps import Tap

pytestmark = NEEDS_NETNS

PORT = 8285
N_PORTS = 4
N_FLOWS = 40  # all miss one of four ports once in 25,000 runs


@pytest.fixture(scope="module")
def mixed() -> Iterator[Lab]:
    """h1 runs our agent, h2 a loop that knows nothing of source ports."""
    with mixed_lab("naive peer", "plain", "--source-ports", str(N_PORTS)) as lab:
        yield lab


def test_flows_leave_from_all_source_ports_and_answers_come_to_the_one_port(mixed: Lab) -> None:
    ours, theirs = mixed.pods()
    with Tap(mixed.hosts[1], "eth0") as wire:
        for _ in range(N_FLOWS):
            with Flow(ours, theirs) as there, Flow(theirs, ours) as back:
                there.wait_for_one_sent_from_now()
                back.wait_for_one_sent_from_now()
            assert (there.missing, back.missing) == ([], [])
        outer = [IP(packet) for packet in wire.packets()]
    overlay = [packet for packet in outer if packet.haslayer("UDP")]
    out = {packet.sport for packet in overlay if packet.src == str(mixed.hosts[0].underlay)}
    assert len(out) == N_PORTS
    assert PORT not in out
    assert {packet.dport for packet in overlay} == {PORT}


def test_pods_reach_each_other_both_ways_and_tcp_flows(mixed: Lab) -> None:
    ours, theirs = mixed.pods()
    assert unanswered([ours, theirs]) == []
    assert tcp_rate(ours, theirs, theirs.ip, duration_s=0.3) > 0
    assert tcp_rate(theirs, ours, ours.ip, duration_s=0.3) > 0


def test_they_stay_over_a_deleted_device(mixed: Lab) -> None:
    mixed.hosts[0].configure("link del flannel0")
    wait_for("the pods reach each other", lambda: None not in ping_matrix(mixed.pods()).values())
    with Tap(mixed.hosts[1], "eth0") as wire:
        assert unanswered(mixed.pods()) == []
        outer = [IP(packet) for packet in wire.packets()]
    assert PORT not in {packet.sport for packet in outer if packet.src == str(mixed.hosts[0].underlay)}
