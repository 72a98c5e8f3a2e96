"""Split super-packets into inner packets that are right in every byte.

The kernel hands over what a network card with segmentation offload would get: one header, up to 64 KiB of payload, and
in the checksum field the sum of the pseudo-header only (Linux: Documentation/networking/segmentation-offloads.rst).
"""

from libc.stdint cimport uint16_t, uint64_t
from libc.string cimport memcpy

from flannel_udp._fastpath.checksum cimport copy_bytes, finish, sum_bytes, sum_header
from flannel_udp._fastpath.drops cimport BAD_OFFLOAD, KEEP
from flannel_udp._fastpath.family cimport FAMILY_4, FAMILY_6
from flannel_udp._fastpath.packet cimport packet_at
from flannel_udp._fastpath.transport cimport (
    Transport,
    find_transport,
    is_plain,
    set_length,
    sum_pseudo_header_of,
    tcp_gso_type,
)
from flannel_udp._fastpath.wire cimport (
    PROTOCOL_TCP,
    PROTOCOL_UDP,
    TCP_CWR,
    TCP_FIN,
    TCP_HEADER_BYTES,
    TCP_PSH,
    UDP_CHECKSUM_OFFSET,
    UDP_HEADER_BYTES,
    VNET_GSO_ECN,
    VNET_GSO_UDP_L4,
    Ipv4Header,
    TcpHeader,
    UdpHeader,
    be16,
    htonl,
    htons,
    ntohl,
    ntohs,
)


cdef DropReason plan_split(
    Split *split, Family family, const VirtioNetHeader *vnet, const Packet *packet, uint32_t segment_max
) noexcept nogil:
    cdef const Ipv4Header *ip = <const Ipv4Header *> packet.data
    cdef const TcpHeader *tcp
    cdef Transport transport = find_transport(family, packet)
    cdef uint32_t kind = vnet.gso_type & ~<uint32_t> VNET_GSO_ECN
    split.family = family
    split.protocol = transport.protocol
    split.ip_len = transport.start
    if kind == tcp_gso_type(family) and transport.protocol == PROTOCOL_TCP:
        tcp = <const TcpHeader *> packet_at(packet, split.ip_len, TCP_HEADER_BYTES)
        if tcp == NULL or tcp.data_offset >> 4 < 5:
            return BAD_OFFLOAD
        split.header_len = split.ip_len + <uint32_t> (tcp.data_offset >> 4) * 4
    elif kind == VNET_GSO_UDP_L4 and transport.protocol == PROTOCOL_UDP:
        split.header_len = split.ip_len + UDP_HEADER_BYTES
    else:
        return BAD_OFFLOAD
    if packet_at(packet, 0, split.header_len) == NULL:
        return BAD_OFFLOAD
    split.payload_len = packet.len - split.header_len
    split.segment_payload = vnet.gso_size
    if (
        vnet.gso_size == 0
        or split.payload_len == 0
        or split.header_len + split.segment_payload > segment_max
        # a fragment has no whole TCP segment or UDP datagram to split
        or not is_plain(&transport)
    ):
        return BAD_OFFLOAD
    split.n = (split.payload_len + split.segment_payload - 1) // split.segment_payload
    if family == FAMILY_4:
        # Each half of a 32-bit word may be taken from the sum as a number of its own (RFC 1071 section 2).
        split.ip_sum = sum_header(packet.data, split.ip_len // 4, 0) - ip.total_len - ip.id - ip.checksum
    return KEEP


cdef uint32_t write_segment(const Split *split, const Packet *packet, uint32_t i, uint8_t *place) noexcept nogil:
    if split.family == FAMILY_6:
        return write_segment_of(split, FAMILY_6, packet, i, place)
    return write_segment_of(split, FAMILY_4, packet, i, place)


cdef inline uint32_t write_segment_of(
    const Split *split, Family family, const Packet *packet, uint32_t i, uint8_t *place
) noexcept nogil:
    cdef uint32_t offset = i * split.segment_payload
    cdef uint32_t payload = min(split.segment_payload, split.payload_len - offset)
    cdef uint32_t l4_len = split.header_len - split.ip_len + payload
    cdef Ipv4Header *ip = <Ipv4Header *> place
    cdef uint64_t total
    memcpy(place, packet.data, split.header_len)
    total = copy_bytes(place + split.header_len, packet.data + split.header_len + offset, payload, 0)
    total += sum_pseudo_header_of(family, place, split.protocol, l4_len)

    if family == FAMILY_4:
        ip.id = htons(<uint16_t> (ntohs(ip.id) + i))
        ip.total_len = htons(<uint16_t> (split.ip_len + l4_len))
        ip.checksum = finish(split.ip_sum + ip.id + ip.total_len)
    else:
        set_length(family, place, split.ip_len, l4_len)
    if split.protocol == PROTOCOL_TCP:
        finish_tcp(<TcpHeader *> (place + split.ip_len), offset, total, i == 0, i + 1 == split.n)
    else:
        finish_udp(<UdpHeader *> (place + split.ip_len), l4_len, total)
    return split.ip_len + l4_len


cdef inline void finish_tcp(TcpHeader *tcp, uint32_t offset, uint64_t total, bint first, bint last) noexcept nogil:
    """Complete a segment's header; `total` is the sum of the pseudo-header and the payload."""
    tcp.seq = htonl(ntohl(tcp.seq) + offset)
    if not last:
        tcp.flags &= <uint8_t> ~(TCP_FIN | TCP_PSH) & 0xff
    if not first:
        tcp.flags &= <uint8_t> ~TCP_CWR & 0xff      # RFC 3168 section 6.1.2: CWR is said once
    tcp.checksum = 0
    tcp.checksum = finish(sum_header(<const uint8_t *> tcp, tcp.data_offset >> 4, total))


cdef inline void finish_udp(UdpHeader *udp, uint32_t udp_len, uint64_t total) noexcept nogil:
    """Likewise for a datagram."""
    udp.len = htons(<uint16_t> udp_len)
    udp.checksum = 0
    udp.checksum = finish(sum_header(<const uint8_t *> udp, UDP_HEADER_BYTES // 4, total))
    if udp.checksum == 0:
        udp.checksum = 0xffff       # RFC 768: 0 would mean that there is none


cdef DropReason complete_checksum(const VirtioNetHeader *vnet, Packet *packet, uint32_t ip_len) noexcept nogil:
    cdef uint32_t start = vnet.csum_start
    cdef uint8_t *field = packet_at(packet, start + vnet.csum_offset, 2)
    cdef be16 checksum
    if field == NULL or start < ip_len:
        return BAD_OFFLOAD
    # The field holds the pseudo-header's sum, so that summing over it adds what is missing.
    checksum = finish(sum_bytes(packet.data + start, packet.len - start, 0))
    # The packet may be a tunnel's, and the checksum that of a header further in: its offset tells whether it is UDP's.
    if checksum == 0 and vnet.csum_offset == UDP_CHECKSUM_OFFSET:
        checksum = 0xffff       # RFC 768, as above
    memcpy(field, &checksum, 2)
    return KEEP
