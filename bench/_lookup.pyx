"""The packet path's own look-up, inlined here as it is there, in a loop without Python."""

from libc.stdint cimport uint8_t, uint32_t

from flannel_udp._fastpath.routes cimport RouteTable
from flannel_udp._fastpath.routes6 cimport RouteTable6
from flannel_udp._fastpath.table cimport lookup
from flannel_udp._fastpath.table6 cimport lookup6


def look_up(RouteTable table not None, const uint32_t[::1] addresses not None, uint32_t zero) -> int:
    """Look up each address (host order) and return the sum of the next hops.

    `zero` is 0, which the compiler cannot know: each address hangs on the next hop before, so that no look-up begins
    before the last one ended. A processor that overlaps them would hide the waiting for memory.
    """
    cdef uint32_t hop = 0
    cdef uint32_t total = 0
    cdef Py_ssize_t i
    with nogil:
        for i in range(addresses.shape[0]):
            hop = lookup(&table.table, addresses[i] ^ (hop & zero))
            total += hop
    return total


def look_up6(RouteTable6 table not None, const uint8_t[::1] addresses not None, uint32_t zero) -> int:
    """Likewise IPv6 addresses, 16 bytes each in network order: where the next one stands hangs on the next hop."""
    cdef uint32_t hop = 0
    cdef uint32_t total = 0
    cdef Py_ssize_t i
    with nogil:
        for i in range(0, addresses.shape[0], 16):
            hop = lookup6(&table.table, &addresses[i + (hop & zero)])
            total += hop
    return total
