"""Which prefixes of a set overlap, answered in time that does not grow with the set. Pure."""

from __future__ import annotations

from flannel_udp.model import Prefix, prefix_of


class PrefixSet:
    """A set of prefixes of one family and of any lengths that knows which of them lie inside or around another one.

    For each prefix length that ever occurred, a counter for every block of that length that holds longer prefixes.
    Leases have one or two lengths in practice, so an update touches one or two counters.
    """

    def __init__(self, version: int) -> None:
        self._bits = 32 if version == 4 else 128
        self._prefixes: set[tuple[int, int]] = set()  # address, length
        self._inside: dict[int, dict[int, int]] = {}  # length → block's address → number of longer prefixes in it

    def __contains__(self, prefix: Prefix) -> bool:
        return _pair(prefix) in self._prefixes

    def add(self, prefix: Prefix) -> None:
        """Add a prefix that is not in the set."""
        address, length = _pair(prefix)
        if length not in self._inside:
            # Once for each of the 32 or 128 lengths at most: the only step that walks over the whole set.
            blocks = self._inside.setdefault(length, {})
            for known_address, known_length in self._prefixes:
                if known_length > length:
                    block = self._block(known_address, length)
                    blocks[block] = blocks.get(block, 0) + 1
        self._prefixes.add((address, length))
        self._count(address, length, 1)

    def remove(self, prefix: Prefix) -> None:
        """Remove a prefix that is in the set."""
        address, length = _pair(prefix)
        self._prefixes.remove((address, length))
        self._count(address, length, -1)

    def inside(self, prefix: Prefix) -> int:
        """Return how many longer prefixes lie inside `prefix`, which is in the set."""
        address, length = _pair(prefix)
        return self._inside[length].get(address, 0)

    def around(self, prefix: Prefix) -> Prefix | None:
        """Return the longest prefix of the set that is shorter than `prefix` and covers it."""
        address, length = _pair(prefix)
        for shorter in sorted(self._inside, reverse=True):
            if shorter < length and (self._block(address, shorter), shorter) in self._prefixes:
                return prefix_of(prefix.network_address, shorter)
        return None

    def _count(self, address: int, length: int, step: int) -> None:
        for shorter, blocks in self._inside.items():
            if shorter < length:
                block = self._block(address, shorter)
                total = blocks.get(block, 0) + step
                if total:
                    blocks[block] = total
                else:
                    del blocks[block]

    def _block(self, address: int, length: int) -> int:
        return address >> (self._bits - length) << (self._bits - length)


def _pair(prefix: Prefix) -> tuple[int, int]:
    return int(prefix.network_address), prefix.prefixlen
