"""Our agent beside hosts that run something else: the naive peer and socat, with a table of subnets written by hand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP

from flannel_udp.dataplane.reference import fault_of
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.probe import tcp_rate
from tests.support.agents import peers_of, unanswered
from tests.support.flow import Flow
from tests.support.labs import NEEDS_NETNS
from tests.support.mixed import FOREIGN_PEERS, OURS, THEIRS, mixed_lab
from tests.support.taps import Tap
from tests.support.transfer import Transfer

pytestmark = NEEDS_NETNS

PORT = 8285
TRANSFER_BYTES = 4 << 20
RARELY_S = 0.05
"""Between two packets: the foreign end has the default socket buffer, 280 small packets, for when it cannot run."""


@pytest.fixture(scope="module", params=FOREIGN_PEERS)
def mixed(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """h1 runs our agent, h2 the foreign peer. No card keeps datagrams joined: a capture shows the wire."""
    with mixed_lab(request.param, "plain") as lab:
        yield lab


def test_the_agent_takes_what_is_reserved_for_it_and_knows_the_foreign_host(mixed: Lab) -> None:
    h1 = mixed.hosts[0]
    assert h1.subnet == OURS
    assert h1.control("/v1/status")["lease"]["reserved"] is True
    assert peers_of(h1) == {str(THEIRS): "192.0.2.2"}


def test_pods_reach_each_other_both_ways(mixed: Lab) -> None:
    assert unanswered(mixed.pods()) == []


def test_every_datagram_is_one_plain_packet_and_nothing_else(mixed: Lab) -> None:
    ours, theirs = mixed.pods()
    with Tap(mixed.hosts[1], "eth0") as wire:
        with Flow(ours, theirs, RARELY_S) as flow, Flow(theirs, ours, RARELY_S) as back:
            flow.wait_for_one_sent_from_now()
            back.wait_for_one_sent_from_now()
            ours.run(["ping", "-c3", "-i0.1", "-s", "1444", str(theirs.ip)])
            theirs.run(["ping", "-c3", "-i0.1", "-s", "3000", str(ours.ip)])
        outer = [IP(packet) for packet in wire.packets()]
    overlay = [packet for packet in outer if packet.haslayer("UDP") and PORT in (packet.sport, packet.dport)]
    assert len(overlay) > 10
    assert {(packet.sport, packet.dport) for packet in overlay} == {(PORT, PORT)}
    for packet in overlay:
        # The length of the datagram is the inner packet's, and its header is as it should be.
        assert fault_of(bytes(packet["UDP"].payload)) is None
    assert (flow.missing, back.missing) == ([], [])


def test_checksums_on_the_wire_are_complete(mixed: Lab) -> None:
    """A pod's kernel leaves the transport checksum to the card; a foreign peer must get it finished."""
    ours, theirs = mixed.pods()
    with Tap(mixed.hosts[1], "eth0") as wire:
        tcp_rate(ours, theirs, theirs.ip, duration_s=0.1)
        datagrams = wire.datagrams(PORT)  # a tenth of a second may fill the tap: what follows needs room
        with Flow(ours, theirs) as flow:
            flow.wait_for_one_sent_from_now()
        datagrams += wire.datagrams(PORT)
    from_us = [datagram for datagram in datagrams if datagram[12:16] == ours.ip.packed]
    sample = []
    for protocol in (6, 17):  # what TCP had in its buffer may come for a while after the last UDP datagram
        alike = [datagram for datagram in from_us if datagram[9] == protocol]
        assert alike
        sample += [IP(datagram) for datagram in alike[:50] + alike[-50:]]
    for packet in sample:
        again = packet.copy()
        del again.chksum
        del again.payload.chksum
        assert bytes(again) == bytes(packet)


def test_tcp_flows_both_ways(mixed: Lab) -> None:
    ours, theirs = mixed.pods()
    with Transfer(ours, theirs, TRANSFER_BYTES), Transfer(theirs, ours, TRANSFER_BYTES):
        pass
