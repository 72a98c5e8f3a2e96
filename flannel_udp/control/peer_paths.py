"""Whose path is to be asked whether it carries large packets, and when.

Pure: what was sent and the time come in. A peer is known by its public IP, a number in host order. Nothing is asked of
a path that large packets do not take.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from flannel_udp.model import PeerActivity

LARGE_BYTES = 1280
"""Longer packets are large: hardly a path carries less."""
AGAIN_S = 600.0
"""While large packets go there."""
LIMITED_AGAIN_S = 30.0
"""While anything goes there and the path was found narrow, or could not be judged: it may be mended by now."""
NEWS_AGAIN_S = 10.0
"""After news of the underlay, which come in flocks where pods start and end."""


@dataclass(slots=True)
class _Path:
    large_s: float = 0.0
    """When a large packet went there last; where the path is limited, any packet."""
    asked_s: float = -math.inf
    settled: bool = False
    """It carries what it should."""
    asking: bool = False


class PeerPaths:
    """The paths that large packets take; `now` is a clock in seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._paths: dict[int, _Path] = {}
        self._news_s = now()

    def note_activity(self, activity: PeerActivity, *, limited: bool) -> None:
        """Take note of packets that went to a peer, whose path is `limited` just now or not."""
        if activity.longest_out > LARGE_BYTES or (limited and activity.packets_out):
            path = self._paths.get(activity.public_ip)
            if path is None:
                path = self._paths[activity.public_ip] = _Path()
            path.large_s = self._now()

    def note_news(self) -> None:
        """Take note that any path may be another one now."""
        self._news_s = self._now()

    def forget(self, peers: Iterable[int]) -> None:
        """Forget these, which are no peers any more."""
        for peer in peers:
            self._paths.pop(peer, None)

    def due(self, ill: Collection[int]) -> list[int]:
        """Return the peers whose paths have to be asked now, by `begin_asking`; none of the `ill` ones.

        Least recently asked first: not all of them have their turn at once, and who had it may soon be due again.
        """
        now = self._now()
        due = [
            (path.asked_s, peer)
            for peer, path in self._paths.items()
            if not path.asking and peer not in ill and self._is_due(path, now)
        ]
        return [peer for _, peer in sorted(due)]

    def _is_due(self, path: _Path, now: float) -> bool:
        since_s = now - path.asked_s
        if path.asked_s < self._news_s and now - path.large_s < AGAIN_S and since_s >= NEWS_AGAIN_S:
            return True
        return path.large_s > path.asked_s and since_s >= (AGAIN_S if path.settled else LIMITED_AGAIN_S)

    def begin_asking(self, peer: int) -> None:
        """Take note that a path is asked from now on, until `note_answer`."""
        path = self._paths[peer]
        path.asking, path.asked_s = True, self._now()

    def note_answer(self, peer: int, *, settled: bool) -> None:
        """Take note of what came of it: whether the path carries what it should."""
        if (path := self._paths.get(peer)) is not None:
            path.asking, path.settled = False, settled
