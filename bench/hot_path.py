"""The packets that `bench.instructions` counts instructions for: an engine alone, driven below callgrind.

`main` takes one argument, bench/callgrind_marks.c as a shared library, and prints how many packets a repetition of each
case moves.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address

from flannel_udp.dataplane import reference
from flannel_udp.dataplane.encapsulation import UDP as PLAIN
from flannel_udp.dataplane.encapsulation import Encapsulation
from flannel_udp.dataplane.reference import VnetHeader
from flannel_udp.errors import FlannelError
from flannel_udp.model import Address
from flannel_udp.options import NO_OFFLOAD, Offload
from tests.support.engine_rig import PEERS, VXLAN, EngineRig, small_table
from tests.support.repair import TCP, UDP, with_partial_checksum
from tests.support.traffic import Flow

REPETITIONS = 3
_ROUNDS = 20
"""In a repetition. In each the engine finds all packets waiting, so that its system calls are always the same."""
_SMALL_BYTES, _SMALL_PACKETS = 64, 64
"""UDP payload, and packets a round: as many as the engine reads in a batch."""
_SEGMENTS = 45
"""So many packets that fill the overlay's MTU fit into a super-packet."""
_TCP_HEADER_BYTES = 20
_VNET_NEEDS_CSUM = 1


@dataclass(frozen=True)
class _Family:
    """What differs by IP version."""

    version: int
    mtu: int
    """The overlay's, where the underlay's is 1500."""
    header_bytes: int
    gso_tcp: int
    """VIRTIO_NET_HDR_GSO_TCPV4 or 6."""
    own_pod: Address
    peers_pod: Address

    @property
    def peer(self) -> str:
        return PEERS[self.version][0]

    @property
    def segment_bytes(self) -> int:
        """TCP payload of a packet that fills the overlay's MTU."""
        return self.mtu - self.header_bytes - _TCP_HEADER_BYTES


_V4 = _Family(4, 1472, 20, 1, IPv4Address("10.1.1.5"), IPv4Address("10.1.2.7"))
_V6 = _Family(6, 1452, 40, 4, IPv6Address("fd00:10:244:1::5"), IPv6Address("fd00:10:244:2::7"))


@dataclass(frozen=True)
class Case:
    """What is fed to the engine in a round, and how many inner packets that is."""

    title: str
    offload: Offload
    packets: int
    feed: Callable[[EngineRig], None]
    encapsulation: Encapsulation = PLAIN
    family: _Family = _V4


def _out_small(family: _Family) -> Callable[[EngineRig], None]:
    flow = Flow(family.own_pod, family.peers_pod, UDP, 0)
    vnet = VnetHeader(flags=_VNET_NEEDS_CSUM, csum_start=family.header_bytes, csum_offset=6)
    waiting = [vnet.pack() + with_partial_checksum(flow.next(bytes(_SMALL_BYTES))) for _ in range(_SMALL_PACKETS)]
    return lambda rig: _each(rig.tun.send, waiting)


def _out_tcp(family: _Family) -> Callable[[EngineRig], None]:
    flow, n_bytes = Flow(family.own_pod, family.peers_pod, TCP, 0), family.segment_bytes
    whole = with_partial_checksum(flow.next(bytes(_SEGMENTS * n_bytes)))
    at = family.header_bytes
    vnet = VnetHeader(_VNET_NEEDS_CSUM, family.gso_tcp, at + _TCP_HEADER_BYTES, n_bytes, csum_start=at, csum_offset=16)
    return lambda rig: _each(rig.tun.send, [vnet.pack() + whole])


def _in(
    family: _Family, protocol: int, encapsulation: Encapsulation, *, begun: bool = False
) -> Callable[[EngineRig], None]:
    """Return what sends a round's packets of a peer; `begun`: their checksums are, as a kernel peer leaves them."""
    n, n_bytes = (_SMALL_PACKETS, _SMALL_BYTES) if protocol == UDP else (_SEGMENTS, family.segment_bytes)
    flow, table = Flow(family.peers_pod, family.own_pod, protocol, 0), small_table(encapsulation, family.version)
    packets = [flow.next(bytes(n_bytes)) for _ in range(n)]
    if begun:
        packets = [with_partial_checksum(packet) for packet in packets]
    waiting = [reference.from_the_wire(packet, ip_address(family.peer), table) for packet in packets]
    return lambda rig: _each(lambda datagram: rig.from_peer(family.peer, datagram), waiting)


def _each(send: Callable[[bytes], object], packets: list[bytes]) -> None:
    for packet in packets:
        send(packet)


def _cases(family: _Family, encapsulation: Encapsulation) -> Iterator[tuple[str, Case]]:
    """Yield name and case; IPv4's by udp have the plainest names."""
    way = "vxlan " if encapsulation is VXLAN else ""
    ending, suffix = (", IPv6", "_v6") if family is _V6 else ("", "")
    found = [
        ("out_small", "out, UDP 64 B", Offload(), _SMALL_PACKETS, _out_small(family)),
        ("out_tcp", "out, TCP split", Offload(), _SEGMENTS, _out_tcp(family)),
        ("in_small", "in, UDP 64 B", NO_OFFLOAD, _SMALL_PACKETS, _in(family, UDP, encapsulation)),
        ("in_tcp", "in, TCP joined", Offload(), _SEGMENTS, _in(family, TCP, encapsulation)),
    ]
    if encapsulation is VXLAN:
        begun = _in(family, TCP, encapsulation, begun=True)
        found.append(("in_begun", "in, TCP of a kernel peer", Offload(), _SEGMENTS, begun))
    for name, title, offload, packets, feed in found:
        case = Case(f"{way}{title}{ending}", offload, packets, feed, encapsulation, family)
        yield f"{way.replace(' ', '_')}{name}{suffix}", case


CASES: Mapping[str, Case] = {
    name: case
    for encapsulation in (PLAIN, VXLAN)
    for family in (_V4, _V6)
    for name, case in _cases(family, encapsulation)
}
"""What is counted, in the order of the table. Small packets that come in are written one by one."""


def run(case: Case, end_repetition: Callable[[], object]) -> int:
    """Move a case's packets; return how many a repetition has. Raises `FlannelError` where one was lost."""
    family = case.family
    table = replace(small_table(case.encapsulation, family.version), mtu=family.mtu)
    with EngineRig(table, offload=case.offload) as rig:
        for _ in range(REPETITIONS):
            for _ in range(_ROUNDS):
                case.feed(rig)
                rig.poll()
                rig.to_peer(family.peer)
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
