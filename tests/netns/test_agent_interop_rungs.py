"""Every rung of the offload ladder, alone and left out, beside hosts that know nothing of offloads."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest
from scapy.layers.inet import IP, TCP

from flannel_udp.dataplane.offload import SOL_UDP, UDP_SEGMENT
from flannel_udp.dataplane.reference import fault_of
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Pod
from flannel_udp.options import NO_OFFLOAD, Offload
from tests.support.labs import NEEDS_NETNS
from tests.support.mixed import FOREIGN_PEERS, THEIRS, mixed_lab
from tests.support.patience import PATIENCE_S
from tests.support.taps import Tap
from tests.support.transfer import Transfer

pytestmark = NEEDS_NETNS

PORT = 8285
FIELDS = [name.replace("-", "_") for name in Offload().names()]
ALONE = [replace(NO_OFFLOAD, **{field: True}) for field in FIELDS]
ONE_LEFT_OUT = [replace(Offload(), **{field: False}) for field in FIELDS]
RUNGS = [Offload(), NO_OFFLOAD, *ALONE, *ONE_LEFT_OUT]

N_DATAGRAMS, DATAGRAM_BYTES = 30, 700
TCP_BYTES = 1 << 20


@pytest.fixture(scope="module", params=FOREIGN_PEERS)
def mixed(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Cards cut what is joined and join what comes in, as real ones do; the agent is started by each test."""
    with mixed_lab(request.param, "wire", with_agent=False) as lab:
        yield lab


def exchange_datagrams(source: Pod, target: Pod) -> None:
    """Send many datagrams in one call: a super-packet, where the tunnel takes one; all must arrive, in order."""
    sent = b"".join(bytes([number]) * DATAGRAM_BYTES for number in range(N_DATAGRAMS))
    with (
        target.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        source.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.settimeout(PATIENCE_S)
        receiver.bind((str(target.ip), 0))
        sender.setsockopt(SOL_UDP, UDP_SEGMENT, DATAGRAM_BYTES)
        sender.sendto(sent, receiver.getsockname())
        got = [receiver.recv(65_535) for _ in range(N_DATAGRAMS)]
    assert {len(datagram) for datagram in got} == {DATAGRAM_BYTES}
    assert b"".join(got) == sent


@pytest.mark.parametrize("offload", RUNGS, ids=str)
def test_the_rung_carries_traffic_both_ways_and_the_wire_shows_plain_packets(mixed: Lab, offload: Offload) -> None:
    h1, h2 = mixed.hosts
    h1.start_agent(f"--offload={offload}")
    try:
        h1.wait_ready()
        h1.wait_peers({THEIRS})
        assert set(h1.control("/v1/status")["offload"]) <= set(offload.names())
        if not h1.pod_addresses():
            h1.attach_pods()
        ours, theirs = h1.pods[0], h2.pods[0]
        with Tap(mixed.net, "h1") as wire:
            for source, target in ((ours, theirs), (theirs, ours)):
                exchange_datagrams(source, target)
                with Transfer(source, target, TCP_BYTES):
                    pass
            datagrams = wire.datagrams(PORT)
        counters = h1.control("/v1/status")["counters"]
        assert (counters["out"]["drops"], counters["in"]["drops"]) == ({}, {})
    finally:
        h1.stop_agent()
    check_wire([datagram for datagram in datagrams if datagram[12:16] == ours.ip.packed], N_DATAGRAMS)
    check_wire([datagram for datagram in datagrams if datagram[12:16] == theirs.ip.packed], N_DATAGRAMS)


def check_wire(datagrams: list[bytes], n_udp: int) -> None:
    """See that each datagram is one inner packet, no longer than the tunnel's MTU, with complete checksums."""
    assert len(datagrams) > n_udp + TCP_BYTES // 1_500
    for datagram in datagrams:
        assert fault_of(datagram) is None
        assert len(datagram) <= 1_472
    for datagram in itertools.islice(datagrams, 0, None, 20):
        packet = IP(datagram)
        again = packet.copy()
        del again.chksum
        del again.payload.chksum
        again = IP(bytes(again))
        if TCP in packet and {packet[TCP].chksum, again[TCP].chksum} == {0, 0xFFFF}:
            again[TCP].chksum = packet[TCP].chksum  # the two zeros of one's complement
        assert bytes(again) == datagram
