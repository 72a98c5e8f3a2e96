"""Run one input through a real engine and its twin."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cache

from flannel_udp._fastpath import icmp
from flannel_udp._fastpath.drops import DropReason
from flannel_udp.dataplane import reference
from flannel_udp.dataplane.reference import Dropped
from flannel_udp.options import NO_OFFLOAD, Offload
from tests.fuzz.scenario import batches
from tests.support.engine_rig import EngineRig, small_table
from tests.support.twin import PEERS, Difference, FromTun, TwinRun

_TABLE = small_table()
_opened = ExitStack()
_SETTINGS = (("strict", Offload()), ("loose", Offload()), ("off", Offload()), ("strict", NO_OFFLOAD))


@cache
def _twin_run(setting: int) -> TwinRun:
    """An engine for all inputs with one setting, until `close`."""
    source_check, offload = _SETTINGS[setting]
    rig = _opened.enter_context(EngineRig(_TABLE, peers=PEERS, source_check=source_check, offload=offload))
    return TwinRun(rig, _TABLE, source_check)


def run(data: bytes) -> None:
    """Raise `Difference` where the engine does not do what its twin does. The first byte chooses the settings."""
    if not data:
        return
    twin_run = _twin_run(data[0] % len(_SETTINGS))
    for batch in batches(data[1:]):
        twin_run.check(batch)
        for step in batch:
            if isinstance(step, FromTun):
                _check_answer(step.packet)


def close() -> None:
    """Close the engines that `run` has opened."""
    _twin_run.cache_clear()
    _opened.close()


def _check_answer(packet: bytes) -> None:
    """The engine of the test has no raw socket to answer by: compare the answers themselves."""
    verdict = reference.outbound(packet, _TABLE)
    own = int(_TABLE.own_address or 0)
    if isinstance(verdict, Dropped) and not reference.fault_of(packet) and verdict.reason != "not_unicast":
        answer = icmp.answer(packet, DropReason[verdict.reason.upper()], own, 0)
        if answer != (verdict.answer or b""):
            raise Difference(f"answer {answer.hex()}, the twin {verdict.answer!r}")
