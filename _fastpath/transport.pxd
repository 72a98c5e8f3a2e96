"""Where an inner packet's transport is: behind IPv4's options or IPv6's extension headers; and its checksum.

`family` is a constant where these are called for each packet: what is the other's costs nothing there.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from flannel_udp._fastpath.checksum cimport finish, sum_bytes, sum_header, sum_pseudo_header
from flannel_udp._fastpath.family cimport FAMILY_4, FAMILY_6, Family
from flannel_udp._fastpath.ipv4 cimport header_len
from flannel_udp._fastpath.packet cimport Packet
from flannel_udp._fastpath.wire cimport (
    AUTHENTICATION_HEADER,
    DESTINATION_HEADER,
    FRAG_OFFSET_MASK,
    FRAGMENT_HEADER,
    HOP_BY_HOP_HEADER,
    IPV4_HEADER_BYTES,
    IPV6_HEADER_BYTES,
    MORE_FRAGMENTS,
    ROUTING_HEADER,
    VNET_GSO_TCPV4,
    VNET_GSO_TCPV6,
    Ipv4Header,
    Ipv6Header,
    be16,
    htons,
    ntohs,
)

cdef struct Transport:
    uint32_t start              # bytes in front of it
    uint8_t protocol            # of a fragment: of what it is a part of; NO_NEXT_HEADER: nobody can tell
    bint is_there               # else it is in an earlier fragment, or the extension headers do not come to an end
    bint is_fragment
    bint is_routed              # a Routing header is in front: the destination may be another than the IP header's


cdef inline Family family_of(const Packet *packet) noexcept nogil:
    """The family of a packet whose header was checked."""
    return FAMILY_6 if packet.data[0] >> 4 == 6 else FAMILY_4


cdef inline uint32_t ip_header_bytes(Family family) noexcept nogil:
    """Bytes of an IP header without options or extension headers."""
    if family == FAMILY_6:
        return IPV6_HEADER_BYTES
    return IPV4_HEADER_BYTES


cdef inline uint32_t least_transport_start(Family family, const Packet *packet) noexcept nogil:
    """Where a transport can begin at the earliest: extension headers are not looked at."""
    if family == FAMILY_6:
        return IPV6_HEADER_BYTES
    return header_len(<const Ipv4Header *> packet.data)


cdef inline uint8_t tcp_gso_type(Family family) noexcept nogil:
    """What a virtio-net header calls a TCP super-packet."""
    if family == FAMILY_6:
        return VNET_GSO_TCPV6
    return VNET_GSO_TCPV4


cdef inline uint8_t protocol_of(Family family, const uint8_t *ip) noexcept nogil:
    """The protocol number, or next header, of an IP header."""
    return (<const Ipv6Header *> ip).next_header if family == FAMILY_6 else (<const Ipv4Header *> ip).protocol


cdef inline void set_length(Family family, uint8_t *ip, uint32_t ip_len, uint32_t n_bytes) noexcept nogil:
    """Let the IP headers of `ip_len` bytes say that `n_bytes` are behind them, and be right otherwise."""
    cdef Ipv4Header *ip4 = <Ipv4Header *> ip
    if family == FAMILY_6:
        (<Ipv6Header *> ip).payload_len = htons(<uint16_t> (ip_len - IPV6_HEADER_BYTES + n_bytes))
        return
    ip4.total_len = htons(<uint16_t> (ip_len + n_bytes))
    ip4.checksum = 0
    ip4.checksum = finish(sum_header(ip, ip_len // 4, 0))


cdef inline Transport find_transport(Family family, const Packet *packet) noexcept nogil:
    """Find it in a packet whose IP header was checked."""
    cdef const Ipv4Header *ip = <const Ipv4Header *> packet.data
    cdef const Ipv6Header *ip6 = <const Ipv6Header *> packet.data
    cdef Transport transport
    transport.is_routed = False
    if family == FAMILY_6:
        transport.start = IPV6_HEADER_BYTES
        transport.protocol = ip6.next_header
        transport.is_there = True
        transport.is_fragment = False
        if is_extension_header(ip6.next_header):
            walk_extension_headers(packet, &transport)
    else:
        transport.start = header_len(ip)
        transport.protocol = ip.protocol
        transport.is_there = ntohs(ip.frag) & FRAG_OFFSET_MASK == 0
        transport.is_fragment = ntohs(ip.frag) & (MORE_FRAGMENTS | FRAG_OFFSET_MASK) != 0
    return transport


cdef inline bint is_extension_header(uint8_t number) noexcept nogil:
    """Whether it is one that may stand in front of a transport (RFC 8200 section 4; ESP hides what it has in it)."""
    return (
        number == HOP_BY_HOP_HEADER
        or number == ROUTING_HEADER
        or number == FRAGMENT_HEADER
        or number == AUTHENTICATION_HEADER
        or number == DESTINATION_HEADER
    )

# Go on behind them. A chain that is cut short or too long has no transport behind it; it is nobody's fault here, since
# a router has no business with it.
cdef void walk_extension_headers(const Packet *packet, Transport *transport) noexcept nogil


cdef inline bint is_plain(const Transport *transport) noexcept nogil:
    """Whether all of the transport's data is here, and its checksum is over the addresses of the IP header."""
    return transport.is_there and not transport.is_fragment and not transport.is_routed


cdef inline uint64_t sum_pseudo_header_of(
    Family family, const uint8_t *ip, uint8_t protocol, uint32_t n_bytes
) noexcept nogil:
    """The pseudo-header for a transport of `n_bytes` behind this IP header (RFC 8200 section 8.1 for IPv6)."""
    if family == FAMILY_6:
        # Length and protocol are 32 bits wide there; their sum is that of their lower halves.
        return sum_header(ip + 8, 8, <uint64_t> htons(protocol) + htons(<uint16_t> n_bytes))
    return sum_pseudo_header((<const Ipv4Header *> ip).src, (<const Ipv4Header *> ip).dst, protocol, n_bytes)


cdef inline be16 transport_checksum(
    Family family, const Packet *packet, uint32_t start, uint8_t protocol
) noexcept nogil:
    """The TCP or UDP checksum from `start` to the end, the field counted as it stands: 0 where it is right."""
    cdef uint32_t n_bytes = packet.len - start
    return finish(
        sum_bytes(packet.data + start, n_bytes, sum_pseudo_header_of(family, packet.data, protocol, n_bytes))
    )


cdef inline bint l4_checksum_is_right(Family family, const Packet *packet) noexcept nogil:
    """Whether the TCP or UDP checksum is right, of a packet without IPv4 options or extension headers."""
    return transport_checksum(family, packet, ip_header_bytes(family), protocol_of(family, packet.data)) == 0
