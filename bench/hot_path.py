"""The packets that `bench.instructions` counts instructions for: an engine alone, driven below callgrind.

`main` takes one argument, bench/callgrind_marks.c as a shared library, and prints how many packets a repetition of each
case moves.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Address

from flannel_udp.dataplane import reference
from flannel_udp.dataplane.encapsulation import UDP as PLAIN
from flannel_udp.dataplane.encapsulation import Encapsulation
from flannel_udp.dataplane.reference import VnetHeader
from flannel_udp.errors import FlannelError
from flannel_udp.options import NO_OFFLOAD, Offload
from tests.support.engine_rig import VXLAN, EngineRig, small_table
from tests.support.repair import TCP, UDP, with_partial_checksum
from tests.support.traffic import Flow

REPETITIONS = 3
_ROUNDS = 20
"""In a repetition. In each the engine finds all packets waiting, so that its system calls are always the same."""
_SMALL_BYTES, _SMALL_PACKETS = 64, 64
"""UDP payload, and packets a round: as many as the engine reads in a batch."""
_SEGMENT_BYTES, _SEGMENTS = 1432, 45
"""TCP payload of a packet that fills an overlay MTU of 1472, and how many such fit into a super-packet."""
_MTU = 1472
_OWN_POD, _PEERS_POD = IPv4Address("10.1.1.5"), IPv4Address("10.1.2.7")
_PEER = "127.0.0.2"
_VNET_NEEDS_CSUM, _VNET_GSO_TCPV4 = 1, 1


@dataclass(frozen=True)
class Case:
    """What is fed to the engine in a round, and how many inner packets that is."""

    title: str
    offload: Offload
    packets: int
    feed: Callable[[EngineRig], None]
    encapsulation: Encapsulation = PLAIN


def _out_small() -> Callable[[EngineRig], None]:
    flow = Flow(_OWN_POD, _PEERS_POD, UDP, 0)
    vnet = VnetHeader(flags=_VNET_NEEDS_CSUM, csum_start=20, csum_offset=6)
    waiting = [vnet.pack() + with_partial_checksum(flow.next(bytes(_SMALL_BYTES))) for _ in range(_SMALL_PACKETS)]
    return lambda rig: _each(rig.tun.send, waiting)


def _out_tcp() -> Callable[[EngineRig], None]:
    whole = with_partial_checksum(Flow(_OWN_POD, _PEERS_POD, TCP, 0).next(bytes(_SEGMENTS * _SEGMENT_BYTES)))
    vnet = VnetHeader(_VNET_NEEDS_CSUM, _VNET_GSO_TCPV4, 40, _SEGMENT_BYTES, csum_start=20, csum_offset=16)
    return lambda rig: _each(rig.tun.send, [vnet.pack() + whole])


def _in(
    protocol: int, n: int, n_bytes: int, encapsulation: Encapsulation = PLAIN, *, begun: bool = False
) -> Callable[[EngineRig], None]:
    """Return what sends so many packets of a peer; `begun`: their checksums are, as a kernel peer leaves them."""
    flow, table = Flow(_PEERS_POD, _OWN_POD, protocol, 0), small_table(encapsulation)
    packets = [flow.next(bytes(n_bytes)) for _ in range(n)]
    if begun:
        packets = [with_partial_checksum(packet) for packet in packets]
    waiting = [reference.from_the_wire(packet, IPv4Address(_PEER), table) for packet in packets]
    return lambda rig: _each(lambda datagram: rig.from_peer(_PEER, datagram), waiting)


def _each(send: Callable[[bytes], object], packets: list[bytes]) -> None:
    for packet in packets:
        send(packet)


CASES: Mapping[str, Case] = {
    "out_small": Case("out, UDP 64 B", Offload(), _SMALL_PACKETS, _out_small()),
    "out_tcp": Case("out, TCP split", Offload(), _SEGMENTS, _out_tcp()),
    "in_small": Case("in, UDP 64 B", NO_OFFLOAD, _SMALL_PACKETS, _in(UDP, _SMALL_PACKETS, _SMALL_BYTES)),
    "in_tcp": Case("in, TCP joined", Offload(), _SEGMENTS, _in(TCP, _SEGMENTS, _SEGMENT_BYTES)),
    "vxlan_out_small": Case("vxlan out, UDP 64 B", Offload(), _SMALL_PACKETS, _out_small(), VXLAN),
    "vxlan_out_tcp": Case("vxlan out, TCP split", Offload(), _SEGMENTS, _out_tcp(), VXLAN),
    "vxlan_in_small": Case(
        *("vxlan in, UDP 64 B", NO_OFFLOAD, _SMALL_PACKETS, _in(UDP, _SMALL_PACKETS, _SMALL_BYTES, VXLAN), VXLAN)
    ),
    "vxlan_in_tcp": Case(
        *("vxlan in, TCP joined", Offload(), _SEGMENTS, _in(TCP, _SEGMENTS, _SEGMENT_BYTES, VXLAN), VXLAN)
    ),
    "vxlan_in_begun": Case(
        "vxlan in, TCP of a kernel peer",
        Offload(),
        _SEGMENTS,
        _in(TCP, _SEGMENTS, _SEGMENT_BYTES, VXLAN, begun=True),
        VXLAN,
    ),
}
"""What is counted, in the order of the table. Small packets that come in are written one by one."""


def run(case: Case, end_repetition: Callable[[], object]) -> int:
    """Move a case's packets; return how many a repetition has. Raises `FlannelError` where one was lost."""
    with EngineRig(replace(small_table(case.encapsulation), mtu=_MTU), offload=case.offload) as rig:
        for _ in range(REPETITIONS):
            for _ in range(_ROUNDS):
                case.feed(rig)
                rig.poll()
                rig.to_peer(_PEER)
                rig.to_tun()
            end_repetition()
        moved = rig.counters("out")["packets"] + rig.counters("in")["packets"]
    if moved != REPETITIONS * _ROUNDS * case.packets:
        raise FlannelError(f"{case.title}: {moved} packets were moved, not {REPETITIONS * _ROUNDS * case.packets}")
    return _ROUNDS * case.packets


def main() -> int:
    """Run every case between the marks and return the exit code."""
    marks = ctypes.CDLL(sys.argv[1])
    marks.begin_counting()
    moved = {name: run(case, partial(marks.end_case, name.encode())) for name, case in CASES.items()}
    sys.stdout.write(json.dumps(moved))
    return 0
