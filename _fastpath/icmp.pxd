"""ICMP answers to packets that cannot go on: unreachable, time exceeded, fragmentation needed; rate limit."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from flannel_udp._fastpath.drops cimport NO_ROUTE, OWN_SUBNET, TOO_BIG, TTL_EXPIRED, DropReason
from flannel_udp._fastpath.packet cimport Packet
from flannel_udp._fastpath.wire cimport Ipv4Header

cdef enum:
    ICMP_ERROR_MAX_BYTES = 576  # RFC 1812 section 4.3.2.3: no longer than this, headers included

cdef struct TokenBucket:
    uint64_t last_ns
    uint64_t credit_ns          # time saved up; an answer costs some of it

cdef struct DestinationBucket:
    uint32_t whose              # an IPv4 address, or what stands for an IPv6 one
    TokenBucket bucket

cdef enum:
    DESTINATIONS = 256          # a direct-mapped memory: who comes anew to a slot begins with a full bucket

# How many answers a datapath gives. "Fragmentation needed" is apart from the others: without it a sender stands still
# (RFC 1191), so no flood of others may suppress it, and there is no limit for a whole host, as in Linux.
cdef struct IcmpLimiter:
    TokenBucket whole                               # all but "fragmentation needed"
    DestinationBucket others[DESTINATIONS]
    DestinationBucket too_big[DESTINATIONS]


cdef inline bint is_told(DropReason reason) noexcept nogil:
    """Whether there is an answer to packets that were dropped for `reason`."""
    return reason == NO_ROUTE or reason == OWN_SUBNET or reason == TTL_EXPIRED or reason == TOO_BIG

# Return the header of a packet that was dropped for `reason` and that may be answered, NULL where it may not.
cdef const Ipv4Header *find_answerable(const Packet *packet, DropReason reason) noexcept nogil

# Take a token for one answer to a destination; False where there is none.
cdef bint icmp_take_token(IcmpLimiter *limiter, DropReason reason, uint32_t whose, uint64_t now_ns) noexcept nogil

# Write the answer to a packet for which `find_answerable` returned `original` into `answer` (ICMP_ERROR_MAX_BYTES
# long). `mtu` (bytes) is what a packet that was TOO_BIG may have. Return the length in bytes.
# Source and header checksum are 0: for a raw socket the kernel fills them in (raw(7)), with the address that it would
# take towards the sender. A subnet's first one, flannel0's, is a broadcast address in the subnet's own pods before
# Linux 5.14, and with rp_filter nothing is accepted from such.
cdef uint32_t write_icmp_error(
    uint8_t *answer,
    const Packet *packet,
    const Ipv4Header *original,
    DropReason reason,
    uint32_t mtu,
) noexcept nogil
