"""Which etcd cluster is ours, and when another one has come in its place."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

REMADE_S = 60.0
"""After so long in which none of our cluster answers, what answers in its place is taken: longer than a restart takes.

Where all endpoints are another one's it is taken at once; a list has endpoints that never answer, as the default has.
"""


@dataclass(frozen=True, slots=True)
class Stranger:
    """An endpoint of another cluster has answered; `configured`: there is a network configuration in that."""

    cluster_id: int
    configured: bool


class Cluster:
    """The one of the endpoint that answered first, until it is replaced."""

    def __init__(self, n_endpoints: int) -> None:
        self._n_endpoints = n_endpoints
        self.id = 0
        """0 while it is not known."""
        self._other: tuple[int, float] | None = None  # the one that has answered instead of it, and since when

    def find_stranger(self, cluster_id: int, *, configured: bool) -> Stranger | None:
        """Take the answer of an endpoint; return what it is if it is none of ours."""
        if self.id not in (0, cluster_id):
            return Stranger(cluster_id, configured)
        self.id = cluster_id
        self.answered()
        return None

    def answered(self) -> None:
        """Note that one of ours has answered."""
        self._other = None

    def is_replaced(self, strangers: Sequence[Stranger]) -> bool:
        """Tell whether it is gone, and forget it, after a round in which only these answered, and none of ours.

        Not for one without a network configuration: a member that was started anew by itself, while the others are
        away, has none.
        """
        if len(strangers) < self._n_endpoints and not self._is_one_for_long(strangers):
            return False
        self.id, self._other = 0, None
        return True

    def _is_one_for_long(self, strangers: Sequence[Stranger]) -> bool:
        ids = {stranger.cluster_id for stranger in strangers}
        if not ids:
            return False
        if len(ids) > 1:
            self._other = None
            return False
        (cluster_id,) = ids
        if self._other is None or self._other[0] != cluster_id:
            self._other = cluster_id, time.monotonic()
        is_configured = any(stranger.configured for stranger in strangers)
        return is_configured and time.monotonic() - self._other[1] >= REMADE_S
