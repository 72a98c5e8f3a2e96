"""What the agent counts of itself for metrics, beside what `shapes.Status` says; counts start at 0 with the process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests of one kind to the registry that have come to an end."""

    count: int
    failed: int
    """Those of them that failed."""
    seconds: float
    """How long all of them took together."""


@dataclass(frozen=True, slots=True)
class RegistryFigures:
    """What was asked of the registry, and what came of its watch."""

    requests: Mapping[str, Requests]
    """By what was asked."""
    watching: bool
    """Whether the watch stands."""
    outages: int
    restarts: int
    """How many outages of the watch are over."""
    snapshots: int
    """Whole listings that the watch began with."""
    changes: int
    last_event_s: float | None
    """Unix time of the last event."""


@dataclass(frozen=True, slots=True)
class LeaseFigures:
    """What became of this host's leases."""

    acquired: int = 0
    lost: int = 0
    renewals: int = 0
    failures: int = 0
    """Renewals that failed, each try."""
    renewed_s: float | None = None
    """Unix time of the last renewal."""


@dataclass(frozen=True, slots=True)
class LatenessFigures:
    """How late the event loop called a timer, again and again."""

    buckets: Sequence[tuple[float, int]]
    """Upper bounds in seconds, the last one infinite, and how many were no later than that."""
    total_s: float


@dataclass(frozen=True, slots=True)
class PeerFigures:
    """The inner packets and bytes that were exchanged with one peer."""

    subnet: str
    public_ip: str
    packets_out: int
    bytes_out: int
    packets_in: int
    bytes_in: int


@dataclass(frozen=True, slots=True)
class Figures:
    """All of it; `lease` and `published` stay as they began before there is a network configuration."""

    registry: RegistryFigures
    lateness: LatenessFigures
    lease: LeaseFigures = LeaseFigures()
    published: int = 0
    """How often the peers were published."""
    publishing_s: float = 0.0
    """How long that took, all together."""
