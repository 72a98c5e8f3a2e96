"""flannel's udp encapsulation (no header of its own: one inner packet, one datagram)."""

from libc.stdint cimport uint32_t


cdef void encapsulate_udp(const Table *table, Batch *batch) noexcept nogil:
    cdef uint32_t i
    for i in range(batch.n):
        batch.packets[i].outer_addr = table.peer_addr[batch.packets[i].next_hop]
