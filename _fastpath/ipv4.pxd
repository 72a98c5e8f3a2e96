"""The inner IPv4 header: parse, check, decrement the TTL."""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from flannel_udp._fastpath.checksum cimport finish, patch_checksum, sum_bytes, sum_header, sum_pseudo_header
from flannel_udp._fastpath.drops cimport (
    BAD_HEADER_CHECKSUM,
    BAD_HEADER_LEN,
    BAD_TOTAL_LEN,
    KEEP,
    NOT_IPV4,
    TOO_SHORT,
    DropReason,
)
from flannel_udp._fastpath.packet cimport Packet, packet_at
from flannel_udp._fastpath.wire cimport IPV4_HEADER_BYTES, Ipv4Header, be16, ntohs


cdef inline uint32_t header_len(const Ipv4Header *ip) noexcept nogil:
    """Bytes of the header, options included (RFC 791: IHL counts 32-bit words)."""
    return <uint32_t> (ip.version_ihl & 0x0f) * 4


cdef inline bint header_checksum_is_right(const Ipv4Header *ip) noexcept nogil:
    """Over a good header, checksum included, the checksum is 0 (RFC 1071 section 1 (3))."""
    return finish(sum_header(<const uint8_t *> ip, header_len(ip) // 4, 0)) == 0


cdef inline DropReason parse(const Packet *packet, Ipv4Header **ip) noexcept nogil:
    """Find the header and check what every IPv4 router must (RFC 1812 section 5.2.2)."""
    cdef Ipv4Header *header = <Ipv4Header *> packet_at(packet, 0, IPV4_HEADER_BYTES)
    if header == NULL:
        return TOO_SHORT
    if header.version_ihl >> 4 != 4:
        return NOT_IPV4
    if header_len(header) < IPV4_HEADER_BYTES or packet_at(packet, 0, header_len(header)) == NULL:
        return BAD_HEADER_LEN
    # One inner packet is the whole datagram, without padding: any difference means that somebody lies.
    if ntohs(header.total_len) != packet.len:
        return BAD_TOTAL_LEN
    if not header_checksum_is_right(header):
        return BAD_HEADER_CHECKSUM
    ip[0] = header
    return KEEP


cdef inline be16 transport_checksum(const Ipv4Header *ip, const uint8_t *transport, uint32_t n_bytes) noexcept nogil:
    """The TCP or UDP checksum over `n_bytes`, the field counted as it stands: 0 where it is right."""
    return finish(sum_bytes(transport, n_bytes, sum_pseudo_header(ip.src, ip.dst, ip.protocol, n_bytes)))


cdef inline bint is_unicast(uint32_t address) noexcept nogil:
    """True unless `address` (host order) is in 0/8, 127/8 or 224/3: nobody's own (RFC 1812 section 5.3.7)."""
    return address >> 24 != 0 and address >> 24 != 127 and address >> 29 != 7


cdef inline bint decrement_ttl(Ipv4Header *ip) noexcept nogil:
    """Decrement the TTL and patch the checksum; False, and nothing changed, where it would reach 0."""
    cdef be16 old_word = 0
    cdef be16 new_word = 0
    if ip.ttl <= 1:
        return False
    memcpy(&old_word, &ip.ttl, 2)   # TTL and protocol share a checksum word
    ip.ttl -= 1
    memcpy(&new_word, &ip.ttl, 2)
    ip.checksum = patch_checksum(ip.checksum, old_word, new_word)
    return True
