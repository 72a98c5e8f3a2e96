"""Run one input through a real engine and its twin. Every input meets an engine that has learnt nothing yet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from ipaddress import IPv4Address

from flannel_udp._fastpath import icmp, icmp6
from flannel_udp._fastpath.drops import DropReason
from flannel_udp.dataplane import reference
from flannel_udp.dataplane.encapsulation import UDP, Encapsulation
from flannel_udp.dataplane.reference import Dropped, ReferenceTable
from flannel_udp.options import NO_OFFLOAD, Offload
from tests.fuzz.scenario import batches
from tests.support.engine_rig import IPIP, PEERS, VXLAN, EngineRig, small_table
from tests.support.twin import Difference, FromPeer, FromTun, TwinRun

_UNANSWERED = ("not_unicast", "looped")
_opened = ExitStack()
# Encapsulation, IP versions, source check, offloads.
SETTINGS: tuple[tuple[Encapsulation, tuple[int, ...], str, Offload], ...] = (
    (UDP, (4,), "strict", Offload()),
    (UDP, (4,), "loose", Offload()),
    (UDP, (4,), "off", Offload()),
    (UDP, (4,), "strict", NO_OFFLOAD),
    (VXLAN, (4,), "strict", Offload()),
    (VXLAN, (4,), "off", Offload()),
    (VXLAN, (4,), "strict", NO_OFFLOAD),
    (IPIP, (4,), "strict", Offload()),
    (IPIP, (4,), "loose", NO_OFFLOAD),
    (UDP, (4, 6), "strict", Offload()),
    (UDP, (4, 6), "loose", NO_OFFLOAD),
    (UDP, (6,), "off", Offload()),
    (VXLAN, (6,), "strict", Offload()),
    (VXLAN, (6,), "off", Offload()),
    (VXLAN, (6,), "strict", NO_OFFLOAD),
)


def tables_of(setting: int) -> list[ReferenceTable]:
    """Return what the engine knows, a table of each IP version."""
    encapsulation, versions, _, _ = SETTINGS[setting]
    return [small_table(encapsulation, version) for version in versions]


@cache
def rig_of(setting: int) -> EngineRig:
    """Sockets for all inputs with one setting, until `close`."""
    _, versions, source_check, offload = SETTINGS[setting]
    first, *second = tables_of(setting)
    peers = [peer for version in versions for peer in PEERS[version]]
    rig = EngineRig(first, peers, source_check, offload=offload, beside=second[0] if second else None)
    return _opened.enter_context(rig)


def steps_of(data: bytes) -> Iterator[list[FromTun | FromPeer]]:
    """Yield the batches that an input is."""
    encapsulation, versions, _, _ = SETTINGS[data[0] % len(SETTINGS)]
    return batches(data[1:], encapsulated=encapsulation is not UDP, versions=versions)


def run(data: bytes) -> None:
    """Raise `Difference` where the engine does not do what its twin does. The first byte chooses the settings."""
    if not data:
        return
    setting = data[0] % len(SETTINGS)
    tables = tables_of(setting)
    rig = rig_of(setting)
    # All that an engine learns is the path MTU, from such a drop. A new one for every input would take 3 ms of 5.
    if rig.drops("out").get("too_big"):
        rig.start_anew()
    twin_run = TwinRun(rig, *tables, source_check=SETTINGS[setting][2])
    for batch in steps_of(data):
        twin_run.check(batch)
        for step in batch:
            if isinstance(step, FromTun):
                _check_answer(step.packet, tables)


def describe(data: bytes) -> Iterator[str]:
    """Yield what an input does, a line a step; of packets the first bytes, as the input holds all of them."""
    if not data:
        return
    yield "{}, IP versions {}, source check {}, {}".format(*SETTINGS[data[0] % len(SETTINGS)])
    for n, batch in enumerate(steps_of(data), 1):
        yield f"batch {n}"
        for step in batch:
            match step:
                case FromTun(vnet, packet):
                    yield f"  from the TUN: {vnet} {_start_of(packet)}"
                case FromPeer(address, packets, tos, change, cut):
                    how = f"TOS {tos}, heading changed {change}, cut to {cut}"
                    yield f"  from {address}, {how}: {', '.join(map(_start_of, packets))}"


def _start_of(packet: bytes) -> str:
    return f"{packet[:60].hex()} ({len(packet)} bytes)"


def close() -> None:
    """Close the engines and sockets that `run` has opened."""
    rig_of.cache_clear()
    _opened.close()


def _check_answer(packet: bytes, tables: list[ReferenceTable]) -> None:
    """The engine of the test has no raw socket to answer by: compare the answers themselves."""
    verdict = reference.outbound(packet, *tables)
    version = reference.version_of(packet)
    own = next((table.own_address for table in tables if table.version == version), None)
    if own is None or not isinstance(verdict, Dropped) or reference.fault_of(packet, version):
        return
    if verdict.reason not in _UNANSWERED:
        reason = DropReason[verdict.reason.upper()]
        is_ipv4 = isinstance(own, IPv4Address)
        answer = icmp.answer(packet, reason, 0) if is_ipv4 else icmp6.answer(packet, reason, own.packed, 0)
        if answer != (verdict.answer or b""):
            raise Difference(f"answer {answer.hex()}, the twin {verdict.answer!r}")
