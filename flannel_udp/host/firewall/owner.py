"""Whose rules are whose, where several overlays share a host: told by the overlay network that is in them.

flannel's names are the host's, one chain or table for everybody. An agent has them unless they hold the rules of
another overlay; then its own go under the same names with a suffix, and both stand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

from flannel_udp.model import Prefix


@dataclass(frozen=True, slots=True)
class Owner:
    """Ours are the rules for `network`, and those for `former`: what this agent, or flanneld before it, had last."""

    network: Prefix
    former: Prefix | None = None

    @property
    def suffix(self) -> str:
        """What our names end with beside another overlay's rules."""
        return suffix_of(self.network)

    @property
    def suffixes(self) -> list[str]:
        """Every suffix under which there may be rules of ours."""
        return list(dict.fromkeys(suffix_of(network) for network in (self.network, self.former) if network is not None))

    def is_others(self, found: Collection[str]) -> bool:
        """Tell whether rules that are for these networks are another overlay's; what names none is anybody's."""
        return bool(found) and not {str(network) for network in (self.network, self.former)} & set(found)


def suffix_of(network: Prefix) -> str:
    """Return the suffix of an overlay network's names: short, for a chain's name has 28 characters at most."""
    return f"-{hashlib.sha256(str(network).encode()).hexdigest()[:8]}"
