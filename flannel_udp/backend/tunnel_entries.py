"""What peers have on a kernel's tunnel device beside their routes: here nothing, the routes say it all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from flannel_udp.host.monitor import OwnEntries
from flannel_udp.model import Peer, Prefix


class TunnelEntries:
    """Methods but `has_way` and `interest` block and raise `FlannelError`: one at a time, in a thread.

    What one of them could not do the next `repair` does.
    """

    faults: Mapping[Prefix, str] = {}
    """Why packets for these subnets do not travel, one line each. Replaced as a whole, never changed."""

    def has_way(self, subnet: Prefix) -> bool:  # noqa: ARG002 - for kinds that have entries
        """Tell whether a route to this peer's subnet leads to that peer."""
        return True

    def load(self, peers: Mapping[Prefix, Peer]) -> None:
        """Want the entries of exactly these peers, whatever is on the device, and set them."""

    def change(self, peers: Mapping[Prefix, Peer | None]) -> set[Prefix]:
        """Want those of these peers as well, ``None`` for one that left, and set them.

        Returns the subnets whose routes may have come or gone with that.
        """
        return set(peers)

    def clean(self) -> None:
        """Remove what no peer needs any more: once the routes do not lead there."""

    def clear(self) -> None:
        """Want none, and remove all."""

    def repair(self) -> Counter[str]:
        """Look, and put right what is not as wanted; return how many entries that were, by what is counted."""
        return Counter()

    def interest(self) -> tuple[OwnEntries, ...]:
        """Return which news concern them."""
        return ()

    @property
    def again_s(self) -> float | None:
        """After how many seconds a repair is due again of what was put off, ``None``: nothing was."""
        return None
