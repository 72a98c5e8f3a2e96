"""What is known of a provider's route tables after a look, for who asks: `flannel-udp cloud routes`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Action = Literal["create", "replace", "remove"]
Verdict = Literal["own", "missing", "peer", "stale", "unknown", "foreign"]


@dataclass(frozen=True, slots=True)
class CloudTableFacts:
    """One table: how many routes count towards a limit, and the next limit that it may run into."""

    id: str
    routes: int
    limit: int | None
    """``None``: it has more than is usual, and nobody says how many it may have."""


@dataclass(frozen=True, slots=True)
class CloudRouteFacts:
    """One route of the overlay: there, or lacking; `action` is what is done about it by this host, in `due_in_s`."""

    table: str
    destination: str
    target: str | None
    verdict: Verdict
    text: str
    action: Action | None = None
    due_in_s: float | None = None


@dataclass(frozen=True, slots=True)
class CloudFacts:
    """All of it, as of `looked_s` (time.monotonic), ``None``: there was no look yet. `error`: the last one failed."""

    here: str | None
    looked_s: float | None
    error: str | None
    cleaner: str | None
    """The subnet whose host removes the routes of hosts that are gone."""
    cleans: bool
    """Whether that is this host."""
    tables: tuple[CloudTableFacts, ...]
    routes: tuple[CloudRouteFacts, ...]
