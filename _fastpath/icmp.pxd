"""ICMP answers to packets that cannot go on: unreachable, time exceeded, fragmentation needed; rate limit."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from flannel_udp._fastpath.drops cimport DropReason
from flannel_udp._fastpath.packet cimport Packet
from flannel_udp._fastpath.wire cimport be32

cdef enum:
    ICMP_ERROR_MAX_BYTES = 576  # RFC 1812 section 4.3.2.3: no longer than this, headers included

# Token bucket, one an engine: 1,000 answers a second, 50 at once. These are Linux's defaults for a whole host
# (net.ipv4.icmp_msgs_per_sec, icmp_msgs_burst), which beside them limits each destination (icmp_ratelimit): we do not.
cdef struct IcmpLimiter:
    uint64_t last_ns
    uint64_t credit_ns          # time saved up; one answer costs ICMP_COST_NS

cdef enum:
    ICMP_COST_NS = 1000000
    ICMP_BURST = 50

# Take a token for one answer; False where there is none.
cdef bint icmp_take_token(IcmpLimiter *limiter, uint64_t now_ns) noexcept nogil

# Write the answer to `packet`, dropped for `reason`, into `answer` (ICMP_ERROR_MAX_BYTES long), sent from `own_addr`.
# `mtu` (bytes) is what a packet that was TOO_BIG may have. Return the length in bytes, 0 where none may be sent.
cdef uint32_t write_icmp_error(
    uint8_t *answer, const Packet *packet, DropReason reason, be32 own_addr, uint32_t mtu
) noexcept nogil
