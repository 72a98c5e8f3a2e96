"""Run one input through a real engine and its twin. Every input meets an engine that has learnt nothing yet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache

from flannel_udp._fastpath import icmp
from flannel_udp._fastpath.drops import DropReason
from flannel_udp.dataplane import reference
from flannel_udp.dataplane.reference import Dropped
from flannel_udp.options import NO_OFFLOAD, Offload
from tests.fuzz.scenario import batches
from tests.support.engine_rig import EngineRig, small_table
from tests.support.twin import PEERS, Difference, FromPeer, FromTun, TwinRun

_TABLE = small_table()
_opened = ExitStack()
_SETTINGS = (("strict", Offload()), ("loose", Offload()), ("off", Offload()), ("strict", NO_OFFLOAD))


@cache
def rig_of(setting: int) -> EngineRig:
    """Sockets for all inputs with one setting, until `close`."""
    source_check, offload = _SETTINGS[setting]
    return _opened.enter_context(EngineRig(_TABLE, peers=PEERS, source_check=source_check, offload=offload))


def run(data: bytes) -> None:
    """Raise `Difference` where the engine does not do what its twin does. The first byte chooses the settings."""
    if not data:
        return
    setting = data[0] % len(_SETTINGS)
    rig = rig_of(setting)
    # All that an engine learns is the path MTU, from such a drop. A new one for every input would take 3 ms of 5.
    if rig.drops("out").get("too_big"):
        rig.start_anew()
    twin_run = TwinRun(rig, _TABLE, source_check=_SETTINGS[setting][0])
    for batch in batches(data[1:]):
        twin_run.check(batch)
        for step in batch:
            if isinstance(step, FromTun):
                _check_answer(step.packet)


def describe(data: bytes) -> Iterator[str]:
    """Yield what an input does, a line a step; of packets the first bytes, as the input holds all of them."""
    if not data:
        return
    yield "source check {}, {}".format(*_SETTINGS[data[0] % len(_SETTINGS)])
    for n, batch in enumerate(batches(data[1:]), 1):
        yield f"batch {n}"
        for step in batch:
            match step:
                case FromTun(vnet, packet):
                    yield f"  from the TUN: {vnet} {_start_of(packet)}"
                case FromPeer(address, datagrams, tos):
                    yield f"  from {address}, TOS {tos}: {', '.join(map(_start_of, datagrams))}"


def _start_of(packet: bytes) -> str:
    return f"{packet[:60].hex()} ({len(packet)} bytes)"


def close() -> None:
    """Close the engines and sockets that `run` has opened."""
    rig_of.cache_clear()
    _opened.close()


def _check_answer(packet: bytes) -> None:
    """The engine of the test has no raw socket to answer by: compare the answers themselves."""
    verdict = reference.outbound(packet, _TABLE)
    own = int(_TABLE.own_address or 0)
    if isinstance(verdict, Dropped) and not reference.fault_of(packet) and verdict.reason != "not_unicast":
        answer = icmp.answer(packet, DropReason[verdict.reason.upper()], own, 0)
        if answer != (verdict.answer or b""):
            raise Difference(f"answer {answer.hex()}, the twin {verdict.answer!r}")
