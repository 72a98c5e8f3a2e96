"""Which peers on our link packets went to and came from, by the kernel alone: as far as its neighbours tell."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Set

from flannel_udp.host.neighbours import (
    NUD_DELAY,
    NUD_FAILED,
    NUD_INCOMPLETE,
    NUD_PROBE,
    NUD_REACHABLE,
    Neighbour,
    list_neighbours,
)
from flannel_udp.host.rtnetlink import open_rtnetlink
from flannel_udp.model import Peer, PeerActivity

HEARD_S = 1.0
"""A neighbour has answered ARP, or neighbour discovery (RFC 4861), just now."""
IN_USE_S = {
    NUD_REACHABLE: 45.0,
    **dict.fromkeys((NUD_DELAY, NUD_PROBE, NUD_INCOMPLETE, NUD_FAILED), 2.0),
}
"""A neighbour in one of these states is in use if it was used so long ago: the kernel does not note any use while it is
sure of one, which is for up to 1.5 times base_reachable_time, 30 s."""
NEIGHBOURS_PART = 1_024


async def neighbour_activity(
    index: int, find: Callable[[Set[int]], Mapping[int, Peer]], mtu: int, version: int = 4
) -> AsyncIterator[list[PeerActivity]]:
    """Yield it for those of the interface's neighbours of one IP version that `find` takes for peers.

    See `Network.activity`. Nobody counts how long packets are: any may be as long as `mtu`. Raises `FlannelError`.
    """
    neighbours = await asyncio.to_thread(_neighbours, index, version)
    known = await asyncio.to_thread(find, {int(each.address) for each in neighbours})
    for first in range(0, len(neighbours), NEIGHBOURS_PART):
        part = [each for each in neighbours[first : first + NEIGHBOURS_PART] if int(each.address) in known]
        yield [
            PeerActivity(int(each.address), int(sent), int(heard), mtu if sent else 0)
            for each in part
            for sent, heard in ((_is_in_use(each), each.confirmed_ago_s <= HEARD_S),)
            if sent or heard
        ]
        await asyncio.sleep(0)


def _is_in_use(neighbour: Neighbour) -> bool:
    return neighbour.used_ago_s <= IN_USE_S.get(neighbour.state, -1.0)


def _neighbours(index: int, version: int) -> list[Neighbour]:
    with open_rtnetlink("reading the neighbours") as rtnetlink:
        return list_neighbours(rtnetlink, index, version)
