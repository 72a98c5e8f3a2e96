"""Every reason to drop a packet. `drops.pyx` holds one sentence for each; a test compares the two lists.

Drops are counted, and of each reason the last few packets are remembered, for people to see who sent what to whom.
"""

from libc.stdint cimport uint32_t, uint64_t

from flannel_udp._fastpath.packet cimport Packet

cpdef enum DropReason:
    KEEP = 0                # not a reason: the packet goes on
    # what is in front of the inner packet is malformed, or for somebody else
    BAD_VXLAN_HEADER
    OTHER_VNI
    NOT_IPV4_FRAME
    NOT_IPV6_FRAME
    OTHERS_MAC
    BAD_OUTER_HEADER
    # the inner packet is malformed
    TOO_SHORT
    NOT_IPV4
    NOT_IPV6
    BAD_HEADER_LEN
    BAD_TOTAL_LEN
    BAD_HEADER_CHECKSUM
    BAD_OFFLOAD
    CONGESTION_LOST
    # it must not or cannot go where it wants
    NOT_UNICAST
    NO_ROUTE
    OWN_SUBNET
    LOOPED
    TTL_EXPIRED
    UNKNOWN_PEER
    SPOOFED_SOURCE
    SPOOFED_MAC
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

cdef enum:
    SAMPLES_KEPT = 8        # of each reason; a power of two
    SAMPLE_WORDS6 = 6       # three addresses of 16 bytes
    OUTER_IS_IPV6 = 0xffffffff  # in the outer address's place: it is among `addresses6`. Nobody has 255.255.255.255

# A dropped packet. Other threads read it while the engine's writes: see `atomics`.
cdef struct DropSample:
    uint64_t sequence       # how many of this reason were written, this one included, times two; odd meanwhile
    uint64_t time_ns        # since 1970
    uint64_t addresses      # of the inner header, network order: source in the low half, destination in the high one
    uint64_t rest           # from the low end: outer address (network order), length, inner protocol, IP version
    uint64_t[<int> SAMPLE_WORDS6] addresses6    # IPv6's, network order: source, destination, outer; else not written

# One direction's counters. A super-packet that is dropped whole counts as one, what is lost after the split as many.
# Written by the engine's thread alone; others read whole 64-bit words.
cdef struct DirectionCounters:
    uint64_t packets        # forwarded
    uint64_t bytes          # inner bytes of the forwarded packets
    uint64_t drops[<int> DROP_REASONS]
    uint64_t batch_time_ns  # when this batch dropped its first packet, since 1970; 0: it has dropped none yet
    uint64_t n_samples[<int> DROP_REASONS]
    DropSample samples[<int> DROP_REASONS][SAMPLES_KEPT]

cdef inline void begin_batch(DirectionCounters *counters) noexcept nogil:
    """Have the clock read for the next drop, and then not again in this batch: it is a fifth of what a drop costs."""
    counters.batch_time_ns = 0


cdef inline void count_forwarded(DirectionCounters *counters, uint32_t n, uint32_t n_bytes) noexcept nogil:
    counters.packets += n
    counters.bytes += n_bytes

# Count `n` packets and remember the first, or only, one of them. Its `outer_addr` or `outer_addr6` is whom it came from
# or was to go to; neither: nobody that is known.
cdef void count_drops(DirectionCounters *counters, DropReason reason, uint32_t n, const Packet *packet) noexcept nogil

# Copy a sample that another thread may be writing; False where there is none, or it was written again and again.
cdef bint read_sample(const DropSample *sample, DropSample *copy) noexcept nogil
