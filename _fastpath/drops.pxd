"""Every reason to drop a packet. `drops.pyx` holds one sentence for each; a test compares the two lists."""

from libc.stdint cimport uint32_t, uint64_t

cpdef enum DropReason:
    KEEP = 0                # not a reason: the packet goes on
    # the inner packet is malformed
    TOO_SHORT
    NOT_IPV4
    BAD_HEADER_LEN
    BAD_TOTAL_LEN
    BAD_HEADER_CHECKSUM
    BAD_OFFLOAD
    CONGESTION_LOST
    # it must not or cannot go where it wants
    NOT_UNICAST
    NO_ROUTE
    OWN_SUBNET
    TTL_EXPIRED
    UNKNOWN_PEER
    SPOOFED_SOURCE
    NOT_OUR_SUBNET
    LEASE_EXPIRED
    # the kernel did not take it
    TOO_BIG
    UNREACHABLE
    REFUSED
    NO_MEMORY
    QUEUE_FULL
    DEVICE_DOWN
    SYSTEM_ERROR
    DROP_REASONS            # not a reason: how many there are

# One direction's counters. A super-packet that is dropped whole counts as one, what is lost after the split as many.
# Written by the engine's thread alone; others read whole 64-bit words.
cdef struct DirectionCounters:
    uint64_t packets        # forwarded
    uint64_t bytes          # inner bytes of the forwarded packets
    uint64_t drops[<int> DROP_REASONS]

cdef inline void count_forwarded(DirectionCounters *counters, uint32_t n, uint32_t n_bytes) noexcept nogil:
    counters.packets += n
    counters.bytes += n_bytes

cdef inline void count_drops(DirectionCounters *counters, DropReason reason, uint32_t n) noexcept nogil:
    counters.drops[<int> reason] += n
