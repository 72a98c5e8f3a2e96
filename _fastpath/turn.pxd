"""How much one direction moves before the other has its turn: the same both ways, in packets and in bytes.

Both bounds may be passed by what one read or one bundle brings: 64 KiB. What a turn touches stays in a core's L2 cache.
"""

from libc.stdint cimport uint32_t

cdef enum:
    TURN_PACKETS = 256
    TURN_BYTES = 180 * 1024     # three super-packets: sent together, they share one wake-up of the peer


cdef inline bint turn_is_over(uint32_t n_packets, uint32_t n_bytes) noexcept nogil:
    return n_packets >= TURN_PACKETS or n_bytes >= TURN_BYTES
