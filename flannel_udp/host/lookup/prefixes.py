"""Routes to parts of the overlay: what may lead some of a peer's addresses elsewhere while its subnet's own is right.

A host may have 200,000 routes. They are read once, a few bytes of each looked at, and only prefixes inside the overlay
are kept, of IPv4 8 bytes each; later ones come with the kernel's news. One that has gone stays until the next reading:
to ask about its address once too often does no harm.
"""

from __future__ import annotations

import errno
import struct
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, MutableSequence

from flannel_udp.host.family import family_by_af, family_of
from flannel_udp.host.rtnetlink import Rtnetlink, attribute, attributes
from flannel_udp.model import Prefix

# linux/rtnetlink.h
_RTM_NEWROUTE, _RTM_GETROUTE = 24, 26
_RTA_DST, _RTA_TABLE = 1, 15

_RTMSG = struct.Struct("=8BI")  # family, dst_len, src_len, tos, table, protocol, scope, type; flags
_U32 = struct.Struct("=I")
_LEN_BITS = 8  # of a prefix length, 0 to 128
_ROOM = 1_000
"""So many prefixes may come by news, or as many as there were, before all are read anew."""


def scan_routes(netlink: Rtnetlink, within: Prefix, *, table: int = 0, kind: int = 0) -> Iterator[bytes]:
    """Yield the kernel's messages about the routes that overlap `within`, of one table and one RTN_… type; 0: any.

    The kernel filters by table and type (NETLINK_GET_STRICT_CHK, Linux 4.20). Raises `OSError`.
    """
    family, first = family_of(within), int(within.network_address)
    mask_of = [(1 << family.n_bits) - (1 << family.n_bits - n) for n in range(family.n_bits + 1)]
    head = _RTMSG.pack(family.af, 0, 0, 0, 0, 0, 0, kind, 0)
    head += attribute(_RTA_TABLE, _U32.pack(table)) if table else b""
    try:
        for body in netlink.dump(_RTM_GETROUTE, head, _RTM_NEWROUTE):
            if body[0] != family.af:
                continue  # from a kernel without IPv6
            common = mask_of[min(body[1], within.prefixlen)]
            if destination_of(body) & common == first & common and kind in (0, body[7]):
                yield body
    except OSError as error:
        if error.errno != errno.ENOENT:  # nobody made this table yet
            raise


def destination_of(body: bytes) -> int:
    """Return a route's destination as a number; the default route, which has none, is 0."""
    if body[1] == 0:
        return 0
    # The kernel puts it behind the table (fib_dump_info in net/ipv4/fib_semantics.c, rt6_fill_node in
    # net/ipv6/route.c): at that place in all messages.
    end = 24 + family_by_af(body[0]).n_bits // 8
    if len(body) >= end and body[22] == _RTA_DST:
        return int.from_bytes(body[24:end])
    return int.from_bytes(dict(attributes(body, _RTMSG.size)).get(_RTA_DST, b""))


class Prefixes:
    """The destinations of this host's routes that are smaller than the overlay and inside it."""

    def __init__(self, overlay: Prefix) -> None:
        self._overlay = overlay
        self._sorted = self._of(())  # address << _LEN_BITS | prefix length
        self._read = 0  # so many there were when all were read

    @property
    def outdated(self) -> bool:
        """Whether so many came by news that the gone ones among them would be a burden."""
        return len(self._sorted) > 2 * self._read + _ROOM

    def read(self, netlink: Rtnetlink, tables: Iterable[int]) -> None:
        """Read them all anew. Raises `OSError`."""
        found = {
            destination_of(body) << _LEN_BITS | body[1]
            for table in tables
            for body in scan_routes(netlink, self._overlay, table=table)
            if body[1] > self._overlay.prefixlen
        }
        self._sorted = self._of(sorted(found))
        self._read = len(self._sorted)

    def _of(self, keys: Iterable[int]) -> MutableSequence[int]:
        return array("Q", keys) if self._overlay.version == 4 else list(keys)

    def note(self, address: int, prefix_len: int) -> None:
        """Note a route that the kernel told of."""
        key = address << _LEN_BITS | prefix_len
        first = int(self._overlay.network_address)
        if prefix_len <= self._overlay.prefixlen or not first <= address < first + self._overlay.num_addresses:
            return
        at = bisect_left(self._sorted, key)
        if at == len(self._sorted) or self._sorted[at] != key:
            self._sorted.insert(at, key)

    def below(self, subnet: Prefix) -> list[Prefix]:
        """Return those that are smaller than `subnet` and inside it."""
        first = int(subnet.network_address)
        low = bisect_left(self._sorted, first << _LEN_BITS)
        high = bisect_left(self._sorted, (first + subnet.num_addresses) << _LEN_BITS, low)
        keys = [key for key in self._sorted[low:high] if key & (1 << _LEN_BITS) - 1 > subnet.prefixlen]
        whole = family_of(subnet)
        n_bytes = whole.n_bits // 8
        return [whole.prefix((key >> _LEN_BITS).to_bytes(n_bytes), key & (1 << _LEN_BITS) - 1) for key in keys]
