"""Packet paths of our own, one an IP version, that are handed to another process, and kept by systemd, as one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from flannel_udp.backend.protocol import Handed, NetworkFacts, Transferable
from flannel_udp.dataplane.adopted import descriptors_of
from flannel_udp.dataplane.dataplane import WorkerPackets, add_counters
from flannel_udp.dataplane.dropped import KEPT
from flannel_udp.errors import FlannelError
from flannel_udp.model import DroppedPacket


class JoinedPaths:
    """See `Transferable`. `parts` are by IP version; each has one worker of every number."""

    def __init__(self, parts: Mapping[int, Transferable]) -> None:
        self._parts = parts

    @property
    def workers(self) -> int:
        """See `Transferable.workers`."""
        return next(iter(self._parts.values())).workers

    def descriptors(self) -> Mapping[str, int]:
        """See `Transferable.descriptors`; by their names they are told apart, see `descriptors_of`."""
        return {name: fd for part in self._parts.values() for name, fd in part.descriptors().items()}

    def state(self) -> Mapping[str, Any]:
        """See `Transferable.state`: that of each part, by IP version."""
        return {str(version): part.state() for version, part in self._parts.items()}

    @property
    def generation(self) -> tuple[int, bool]:
        """See `Transferable.generation`: there may be more parts than before."""
        replaced, lost = zip(*(part.generation for part in self._parts.values()), strict=True)
        return sum(replaced) + len(replaced), any(lost)

    def lend(self) -> None:
        """See `Transferable.lend`."""
        for part in self._parts.values():
            part.lend()

    def take_back(self) -> None:
        """See `Transferable.take_back`."""
        for part in self._parts.values():
            part.take_back()

    def start_worker(self, number: int) -> None:
        """See `Transferable.start_worker`."""
        for part in self._parts.values():
            part.start_worker(number)

    def stop_worker(self, number: int) -> None:
        """See `Transferable.stop_worker`."""
        for part in self._parts.values():
            part.stop_worker(number)

    def stop(self) -> None:
        """See `Transferable.stop`."""
        for part in self._parts.values():
            part.stop()


def share_out(handed: Handed, versions: Collection[int]) -> dict[int, Handed]:
    """Return what is whose part, by IP version, of what a process had that had `JoinedPaths`.

    It may have had fewer than these `versions`, but none else. Raises `FlannelError`; the descriptors are closed then.
    """
    shares = {version: descriptors_of(handed.descriptors, version) for version in (4, 6)}
    carried = [version for version, descriptors in shares.items() if descriptors]
    if not carried or not set(carried) <= set(versions):
        handed.close()
        theirs, ours = (" and ".join(f"IPv{version}" for version in each) for each in (carried, sorted(versions)))
        raise FlannelError(f"its packets are {theirs}, ours {ours}")
    return {version: Handed(shares[version], _state_of(handed, version)) for version in carried}


def _state_of(handed: Handed, version: int) -> Mapping[str, Any] | None:
    if handed.state is None:
        return None
    state = handed.state.get(str(version))
    return state if isinstance(state, Mapping) else {}  # which is refused as making no sense


def join_path_facts(first: NetworkFacts, *others: NetworkFacts) -> NetworkFacts:
    """Return what our own packet paths say together: what was counted is added up, offloads are those of all."""
    joined = first
    for other in others:
        counters: dict[str, Any] = {}
        for each in (joined, other):
            add_counters(counters, each.counters or {})
        offload = None if joined.offload is None else [name for name in joined.offload if name in (other.offload or ())]
        joined = replace(
            joined,
            offload=offload,
            worker_packets=_add_workers(joined.worker_packets, other.worker_packets),
            counters=counters or None,
            counters_by_version={**joined.counters_by_version, **other.counters_by_version},
            last_dropped=_join_dropped(joined.last_dropped, other.last_dropped),
        )
    return joined


_Workers = Collection[tuple[int, int]] | None
_Dropped = Mapping[str, Collection[DroppedPacket]] | None


def _add_workers(ours: _Workers, theirs: _Workers) -> list[WorkerPackets] | None:
    if ours is None or theirs is None:
        return None
    return [WorkerPackets(a + c, b + d) for (a, b), (c, d) in zip(ours, theirs, strict=True)]


def _join_dropped(ours: _Dropped, theirs: _Dropped) -> dict[str, list[DroppedPacket]] | None:
    if ours is None or theirs is None:
        return None
    joined = {reason: [*ours.get(reason, ()), *theirs.get(reason, ())] for reason in {**ours, **theirs}}
    return {reason: sorted(rows, key=lambda row: row.time_s)[-KEPT:] for reason, rows in joined.items()}
