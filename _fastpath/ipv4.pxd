"""The inner IPv4 header: parse, check, decrement the TTL."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from flannel_udp._fastpath.checksum cimport finish, patch_checksum, sum_header
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
    # Nearly every header is five words: with a number that is known here they are added without a loop.
    cdef uint64_t total = sum_header(<const uint8_t *> ip, IPV4_HEADER_BYTES // 4, 0)
    if header_len(ip) > IPV4_HEADER_BYTES:
        total = sum_header(<const uint8_t *> ip + IPV4_HEADER_BYTES, (header_len(ip) - IPV4_HEADER_BYTES) // 4, total)
    return finish(total) == 0


cdef inline DropReason parse(const Packet *packet, Ipv4Header **ip) noexcept nogil:
    """Find the header and check what every IPv4 router must (RFC 1812 section 5.2.2)."""
    cdef Ipv4Header *header = <Ipv4Header *> packet_at(packet, 0, IPV4_HEADER_BYTES)
    if header == NULL:
        return TOO_SHORT
    if header.version_ihl >> 4 != 4:
        return NOT_IPV4
    if header_len(header) < IPV4_HEADER_BYTES or packet_at(packet, 0, header_len(header)) == NULL:
        return BAD_HEADER_LEN
    # One inner packet is all there is: any difference means that somebody lies.
    if ntohs(header.total_len) != packet.len:
        return BAD_TOTAL_LEN
    if not header_checksum_is_right(header):
        return BAD_HEADER_CHECKSUM
    ip[0] = header
    return KEEP


cdef inline void cut_padding(Packet *packet) noexcept nogil:
    """Cut what a frame may have behind a packet (RFC 894: frames have a least length). Nothing is checked yet."""
    cdef const Ipv4Header *ip = <const Ipv4Header *> packet_at(packet, 0, IPV4_HEADER_BYTES)
    cdef uint32_t total_len
    if ip == NULL:
        return
    total_len = ntohs(ip.total_len)
    if IPV4_HEADER_BYTES <= total_len < packet.len:
        packet.len = total_len


cdef inline bint is_unicast(uint32_t address) noexcept nogil:
    """Whether a single host may have `address` (host order): the rule of `flannel_udp.netconf.addresses`.

    Nobody's own are 0/8, 127/8, 224/4 and 255.255.255.255 (RFC 1812 section 5.3.7). Linux routes the rest of 240/4.
    What is between them, most used first: a subtraction wraps round for what is below.
    """
    return (
        address - <uint32_t> 0x01000000 < <uint32_t> 0x7e000000         # 1.0.0.0 to 126.255.255.255
        or address - <uint32_t> 0x80000000 < <uint32_t> 0x60000000      # 128.0.0.0 to 223.255.255.255
        or address - <uint32_t> 0xf0000000 < <uint32_t> 0x0fffffff      # 240.0.0.0 to 255.255.255.254
    )


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
