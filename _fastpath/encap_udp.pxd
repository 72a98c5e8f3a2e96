"""flannel's udp encapsulation: the inner packet is the whole datagram, so all there is to choose is the address."""

from libc.stdint cimport uint32_t

from flannel_udp._fastpath.routes cimport Table
from flannel_udp._fastpath.wire cimport be32

cdef enum:
    OUTER_BYTES = 28            # IPv4 and UDP


cdef inline be32 outer_address(const Table *table, uint32_t next_hop) noexcept nogil:
    """Return the underlay address that datagrams for this next hop go to."""
    return table.peer_addr[next_hop]
