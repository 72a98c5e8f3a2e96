"""The packet path's own look-up, inlined here as it is there, in a loop without Python."""

from libc.stdint cimport uint32_t

from flannel_udp._fastpath.routes cimport RouteTable, lookup


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
