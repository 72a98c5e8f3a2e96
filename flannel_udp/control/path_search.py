"""How large packets may be on a path that loses larger ones without a word (RFC 8899 section 5, in spirit).

Pure but for the question: `carries` sends a packet of some size, more than once where none comes back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

SMALL_BYTES = 100
BASE_BYTES = 1280 - 28
"""Inner bytes that nearly every path carries: IPv6's smallest MTU, less what a tunnel puts in front."""
CONFIRMATIONS = 2
"""So many times it is asked again whether a path is narrow before that is said."""
FLOOR_BYTES = {4: 576, 6: 1280}
"""What every host takes by each IP version (RFC 791 section 3.1, RFC 8200 section 5): nothing is limited to less."""


async def search_path_mtu(
    carries: Callable[[int], Awaitable[bool]], largest: int, floor: int = FLOOR_BYTES[4]
) -> int | None:
    """Return how many bytes a packet may have: `largest`, or less, but not less than `floor`.

    ``None``: that cannot be told.

    Nothing is to be limited before the end: who was told of less than the path carries believes it for ten minutes.
    """
    if await carries(largest):
        return largest
    if not await carries(SMALL_BYTES):
        return None
    low, high = 0, largest
    for n_bytes in (BASE_BYTES, floor):
        if floor <= n_bytes < high:
            if await carries(n_bytes):
                low = n_bytes
                break
            high = n_bytes
    if low == 0:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if await carries(middle):
            low = middle
        else:
            high = middle
    for _ in range(CONFIRMATIONS):  # on a path that loses some of everything it may have been chance
        if await carries(largest):
            return largest
    return low if await carries(SMALL_BYTES) else None
