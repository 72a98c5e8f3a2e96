"""The packet path against its twin on a stream of generated packets and super-packets, bit for bit.

As many as FLANNEL_UDP_DIFFERENTIAL_PACKETS says; `tox -e differential` sets a million.
"""

from __future__ import annotations

import os
import sys
from ipaddress import IPv4Address, IPv4Network

import pytest

from flannel_udp.dataplane.reference import OWN, ReferenceTable
from flannel_udp.options import Offload
from tests.support.engine_rig import EngineRig, small_table
from tests.support.traffic import Traffic, size_of
from tests.support.twin import PEERS, PENDING_MAX_BYTES, FromPeer, FromTun, TwinRun

PACKETS = int(os.environ.get("FLANNEL_UDP_DIFFERENTIAL_PACKETS", "20000"))
BATCH_STEPS = 24
SEED = 20_261_122


def far_table() -> ReferenceTable:
    """The table of the host that our packets for 10.1.2.0/24 go to; to it, we are 127.0.0.2."""
    return ReferenceTable({IPv4Network("10.1.2.0/24"): OWN, IPv4Network("10.1.1.0/24"): IPv4Address("127.0.0.2")})


def next_batch(traffic: Traffic) -> list[FromTun | FromPeer]:
    batch: list[FromTun | FromPeer] = []
    n_bytes = 0
    while len(batch) < BATCH_STEPS and n_bytes < PENDING_MAX_BYTES - 65_535:
        outbound = traffic.outbound()
        inbound = traffic.inbound() if len(batch) % 12 == 0 else None
        batch += [outbound] if inbound is None else [outbound, inbound]
        n_bytes += len(outbound.packet) + (sum(map(len, inbound.datagrams)) if inbound else 0)
    return batch


def test_split_and_joined_again_the_stream_is_the_one_the_twin_computes(capsys: pytest.CaptureFixture[str]) -> None:
    traffic = Traffic(SEED)
    generated = super_packets = 0
    with (
        EngineRig(small_table(), PEERS, offload=Offload()) as near_rig,
        EngineRig(far_table(), PEERS, offload=Offload()) as far_rig,
    ):
        near, far = TwinRun(near_rig, small_table(), "strict"), TwinRun(far_rig, far_table(), "strict")
        while generated < PACKETS:
            batch = next_batch(traffic)
            sent = near.check(batch)
            far.check([FromPeer("127.0.0.2", (datagram,)) for datagram in sent["127.0.0.2"]])
            generated += size_of(batch)
            super_packets += sum(isinstance(step, FromTun) and step.vnet.gso_type != 0 for step in batch)
        joined = sum(
            rig.counters("in")["packets"] - rig.engine.counters()["system_calls"]["tun_writes"]
            for rig in (near_rig, far_rig)
        )
    assert super_packets > 0
    assert joined > 0
    with capsys.disabled():
        sys.stdout.write(
            f"\n{generated:,} packets generated, {super_packets:,} of them super-packets; "
            f"{near.packets + far.packets:,} compared with the twin's, {joined:,} of them joined to others\n"
        )
