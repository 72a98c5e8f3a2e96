"""The packet path against its twin on a stream of generated packets and super-packets, bit for bit.

As many as FLANNEL_UDP_DIFFERENTIAL_PACKETS says, in each encapsulation; `tox -e differential` sets a million. Where an
encapsulation carries IPv6, half of them are.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle

import pytest

from flannel_udp.dataplane import reference
from flannel_udp.dataplane.encapsulation import UDP, Encapsulation
from flannel_udp.dataplane.reference import OWN, ReferenceTable
from flannel_udp.model import Address
from flannel_udp.options import Offload
from tests.support.effort import share_of
from tests.support.engine_rig import IPIP, PEERS, VXLAN, EngineRig, small_table
from tests.support.traffic import Traffic, size_of
from tests.support.twin import PENDING_MAX_BYTES, FromPeer, FromTun, TwinRun

PACKETS = int(os.environ.get("FLANNEL_UDP_DIFFERENTIAL_PACKETS", share_of(20_000)))
BATCH_STEPS = 24
SEED = 20_261_122


def far_table(encapsulation: Encapsulation, version: int) -> ReferenceTable:
    """The table of the host that our packets to the second subnet go to; to it, we are where that host is for us."""
    near = small_table(encapsulation, version)
    ours, theirs, _ = near.routes
    we: Address = near.routes[theirs]  # type: ignore[assignment]
    return ReferenceTable(
        {theirs: OWN, ours: we},
        underlay_address=near.underlay_address,
        encapsulation=replace(encapsulation, own_mac=near.macs.get(we, 0)),
        macs={we: encapsulation.own_mac} if near.macs else {},
        version=version,
    )


def next_batch(turns: Iterator[Traffic], encapsulation: Encapsulation) -> list[FromTun | FromPeer]:
    batch: list[FromTun | FromPeer] = []
    n_bytes = 0
    while len(batch) < BATCH_STEPS and n_bytes < PENDING_MAX_BYTES - 65_535:
        traffic = next(turns)
        batch.append(traffic.outbound())
        if len(batch) % 12 in (1, 2):
            batch.append(traffic.inbound())
        if len(batch) % 12 in (7, 8) and encapsulation.kind != "udp":
            batch.append(traffic.from_kernel_peer())
        n_bytes = sum(len(step.packet) if isinstance(step, FromTun) else sum(map(len, step.packets)) for step in batch)
    return batch


def open_rig(tables: list[ReferenceTable]) -> EngineRig:
    peers = [peer for table in tables for peer in PEERS[table.version]]
    return EngineRig(tables[0], peers, offload=Offload(), beside=tables[1] if len(tables) > 1 else None)


@pytest.mark.parametrize(
    ("encapsulation", "versions", "share"),
    [(UDP, (4, 6), 1.0), (VXLAN, (4,), 0.5), (VXLAN, (6,), 0.5), (IPIP, (4,), 1.0)],
    ids=["udp", "vxlan, IPv4", "vxlan, IPv6", "ipip"],
)
def test_split_and_joined_again_the_stream_is_the_one_the_twin_computes(
    encapsulation: Encapsulation, versions: tuple[int, ...], share: float, capsys: pytest.CaptureFixture[str]
) -> None:
    near_tables = [small_table(encapsulation, version) for version in versions]
    far_tables = [far_table(encapsulation, version) for version in versions]
    turns = cycle([Traffic(SEED, version) for version in versions])
    generated = super_packets = 0
    with open_rig(near_tables) as near_rig, open_rig(far_tables) as far_rig:
        near = TwinRun(near_rig, *near_tables, source_check="strict")
        far = TwinRun(far_rig, *far_tables, source_check="strict")
        heading = reference.VXLAN_HEADING_BYTES if encapsulation.kind == "vxlan" else 0
        while generated < PACKETS * share:
            batch = next_batch(turns, encapsulation)
            sent = near.check(batch)
            for version in versions:
                second = PEERS[version][0]
                far.check([FromPeer(second, (datagram[heading:],)) for datagram in sent[second]])
            generated += size_of(batch)
            super_packets += sum(isinstance(step, FromTun) and step.vnet.gso_type != 0 for step in batch)
        joined = sum(rig.counters("in")["packets"] - rig.system_calls()["tun_writes"] for rig in (near_rig, far_rig))
    compared: Counter[int] = near.packets + far.packets
    assert super_packets > 0
    assert joined > 0
    assert all(compared[version] > compared.total() * 0.9 / len(versions) for version in versions)
    with capsys.disabled():
        by_version = ", ".join(f"{compared[version]:,} of IPv{version}" for version in versions)
        sys.stdout.write(
            f"\n{encapsulation.kind}: {generated:,} packets generated, {super_packets:,} of them super-packets; "
            f"{compared.total():,} compared with the twin's ({by_version}), {joined:,} of them joined to others\n"
        )
