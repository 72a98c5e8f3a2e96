"""The inner IPv6 header: parse, check, decrement the hop limit."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from flannel_udp._fastpath.drops cimport BAD_TOTAL_LEN, KEEP, NOT_IPV6, TOO_SHORT, DropReason
from flannel_udp._fastpath.packet cimport Packet, packet_at
from flannel_udp._fastpath.wire cimport HOP_BY_HOP_HEADER, IPV6_HEADER_BYTES, Ipv6Header, ntohs

cdef extern from "<endian.h>" nogil:
    uint64_t be64toh(uint64_t value)


cdef inline uint8_t version_of(const Ipv6Header *ip) noexcept nogil:
    return (<const uint8_t *> ip)[0] >> 4


cdef inline DropReason parse6(const Packet *packet, Ipv6Header **ip) noexcept nogil:
    """Find the header and check what can be: it has no checksum, and no router looks behind it (RFC 8200 section 4)."""
    cdef Ipv6Header *header = <Ipv6Header *> packet_at(packet, 0, IPV6_HEADER_BYTES)
    if header == NULL:
        return TOO_SHORT
    if version_of(header) != 6:
        return NOT_IPV6
    # One inner packet is all there is: any difference means that somebody lies.
    if ntohs(header.payload_len) != packet.len - IPV6_HEADER_BYTES:
        return BAD_TOTAL_LEN
    if header.payload_len == 0 and header.next_header == HOP_BY_HOP_HEADER:
        return BAD_TOTAL_LEN            # a jumbogram, longer than a datagram can be (RFC 2675 section 3)
    ip[0] = header
    return KEEP


cdef inline void cut_padding6(Packet *packet) noexcept nogil:
    """Cut what a frame may have behind a packet (RFC 894: frames have a least length). Nothing is checked yet."""
    cdef const Ipv6Header *ip = <const Ipv6Header *> packet_at(packet, 0, IPV6_HEADER_BYTES)
    if ip != NULL and ntohs(ip.payload_len) < packet.len - IPV6_HEADER_BYTES:
        packet.len = <uint32_t> IPV6_HEADER_BYTES + ntohs(ip.payload_len)


cdef inline bint is_unicast6(const uint8_t *address) noexcept nogil:
    """Whether a router forwards what is from or to `address` (network order).

    Not ::, ::1 (RFC 4291 sections 2.5.2 and 2.5.3), ::ffff:0:0/96 (2.5.5.2: an IPv4 address, on no wire), fe80::/10
    (2.5.6) and ff00::/8 (2.7).
    """
    cdef uint64_t[2] halves
    cdef uint64_t high, low
    memcpy(halves, address, sizeof(halves))
    high = be64toh(halves[0])
    low = be64toh(halves[1])
    if high == 0:
        return low > 1 and low >> 32 != 0xffff
    return high >> 56 != 0xff and high >> 54 != 0x3fa


cdef inline bint decrement_hop_limit(Ipv6Header *ip) noexcept nogil:
    """Decrement the hop limit; False, and nothing changed, where it would reach 0."""
    if ip.hop_limit <= 1:
        return False
    ip.hop_limit -= 1
    return True
