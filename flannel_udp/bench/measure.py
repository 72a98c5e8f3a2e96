"""What is measured on the way from one host to another, by name."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from flannel_udp.bench import datagrams, names, pings, streams
from flannel_udp.bench.contenders import Pair
from flannel_udp.bench.generators import Load
from flannel_udp.bench.samples import Found
from flannel_udp.bench.ways import Way

_DEFAULT_CONGESTION_CONTROL = Path("/proc/sys/net/ipv4/tcp_congestion_control")
_OFFERED_PPS = (50_000, 100_000, 200_000)
Measured_contra = TypeVar("Measured_contra", contravariant=True)


@dataclass(frozen=True, slots=True)
class Measure(Generic[Measured_contra]):
    """How a measure is taken; it lasts `spans` times the seconds asked for and some `extra_s` seconds more."""

    take: Callable[[Measured_contra, Load], Found]
    spans: int = 1
    extra_s: float = 0.6

    def nominal_s(self, seconds: int) -> float:
        """Return how long a sample takes."""
        return self.spans * seconds + self.extra_s


def default_congestion_control() -> str:
    """Return what the machine uses where nothing is asked for; a new namespace begins with it."""
    return _DEFAULT_CONGESTION_CONTROL.read_text().strip()


def measure_of(name: str) -> Measure[Pair]:
    """Return how the measure of this name is taken in a lab."""
    both_ways = Measure(datagrams.saturate_both_ways, extra_s=0.9)
    return both_ways if name == names.UDP_BOTH else network_measure_of(name)


def network_measure_of(name: str) -> Measure[Way]:
    """Return the same between two machines, too: of all measures but `UDP_BOTH`, which sends from the other end."""
    if tcp := names.streams_of(name):
        return Measure(functools.partial(streams.tcp, streams=tcp))
    if udp := names.datagrams_of(name):
        if not udp.loss_free:
            return Measure(functools.partial(datagrams.saturate, payload_bytes=udp.payload_bytes), extra_s=0.9)
        take = functools.partial(datagrams.loss_free, payload_bytes=udp.payload_bytes)
        # A rate that fails is tried twice: half as many trials again as steps.
        return Measure(take, spans=0, extra_s=1.5 * datagrams.SEARCH_STEPS)
    offered = functools.partial(datagrams.offer, rates_pps=_OFFERED_PPS)
    return {
        names.TCP_BOTH: Measure(streams.tcp_both_ways),
        names.UDP_OFFERED: Measure(offered, spans=len(_OFFERED_PPS), extra_s=1.3),
        names.RTT: Measure(pings.round_trip),
        names.RTT_LOADED: Measure(pings.round_trip_under_load, extra_s=2.3),
    }[name]
