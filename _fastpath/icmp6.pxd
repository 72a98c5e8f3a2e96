"""ICMPv6 answers to packets that cannot go on: unreachable, time exceeded, packet too big. Its limiter is `icmp`'s."""

from libc.stdint cimport uint8_t, uint32_t

from flannel_udp._fastpath.drops cimport DropReason
from flannel_udp._fastpath.packet cimport Packet
from flannel_udp._fastpath.wire cimport Ipv6Header

cdef enum:
    ICMP6_ERROR_MAX_BYTES = 1280    # RFC 4443 section 2.4 (c): what every link carries, headers included

# Return the header of a packet that was dropped for `reason` and that may be answered, NULL where it may not.
cdef const Ipv6Header *find_answerable6(const Packet *packet, DropReason reason) noexcept nogil

# Write the answer to a packet for which `find_answerable6` returned `original` into `answer` (ICMP6_ERROR_MAX_BYTES
# long), sent from `own_addr` (16 bytes). `mtu` (bytes) is what a packet that was TOO_BIG may have. Return the length in
# bytes.
cdef uint32_t write_icmp6_error(
    uint8_t *answer,
    const Packet *packet,
    const Ipv6Header *original,
    DropReason reason,
    const uint8_t *own_addr,
    uint32_t mtu,
) noexcept nogil
