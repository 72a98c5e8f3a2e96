"""Fragments of an inner packet."""

from libc.stdint cimport uint8_t
from libc.string cimport memcpy

from flannel_udp._fastpath.checksum cimport finish, sum_header
from flannel_udp._fastpath.drops cimport BAD_TOTAL_LEN, KEEP
from flannel_udp._fastpath.ipv4 cimport header_len
from flannel_udp._fastpath.transmit cimport place_to_send, send_later
from flannel_udp._fastpath.wire cimport (
    FRAG_OFFSET_MASK,
    IPV4_HEADER_BYTES,
    IPV4_MAX_BYTES,
    MORE_FRAGMENTS,
    Ipv4Header,
    htons,
    ntohs,
)

cdef enum:
    # RFC 791 section 3.1, options
    OPTION_END = 0
    OPTION_NOP = 1
    OPTION_COPIED = 0x80        # it belongs into every fragment, not into the first one only


cdef DropReason queue_fragments(Datapath *dp, const Packet *packet, uint16_t how, uint32_t mtu) noexcept nogil:
    cdef const Ipv4Header *ip = <const Ipv4Header *> packet.data
    cdef uint32_t head = header_len(ip)
    cdef uint32_t most = (mtu - head) & ~<uint32_t> 7       # offsets count 8 bytes
    cdef uint32_t offset = head
    cdef uint32_t n
    if (ntohs(ip.frag) & <uint32_t> FRAG_OFFSET_MASK) * 8 + packet.len > <uint32_t> IPV4_MAX_BYTES:
        return BAD_TOTAL_LEN    # nobody can put it together, and its pieces' offsets may run over into the flags
    while offset < packet.len:
        n = min(most, packet.len - offset)
        write_fragment(place_to_send(dp, dp.encapsulation, head + n, packet.next_hop), packet, head, offset, n)
        send_later(dp, dp.encapsulation, head + n, packet.next_hop, how)
        offset += n
    return KEEP


cdef inline void write_fragment(
    uint8_t *place, const Packet *packet, uint32_t head, uint32_t offset, uint32_t n
) noexcept nogil:
    """Write the fragment with the `n` bytes from `offset` on; `head` is the header's length."""
    cdef Ipv4Header *ip = <Ipv4Header *> place
    cdef uint32_t frag
    memcpy(place, packet.data, head)
    memcpy(place + head, packet.data + offset, n)
    frag = ntohs(ip.frag)       # it may be a fragment itself
    frag = (frag & ~<uint32_t> FRAG_OFFSET_MASK) | ((frag & FRAG_OFFSET_MASK) + (offset - head) // 8)
    if offset + n < packet.len:
        frag |= MORE_FRAGMENTS
    if offset > head:
        blank_options(place, head)
    ip.frag = htons(<uint16_t> frag)
    ip.total_len = htons(<uint16_t> (head + n))
    ip.checksum = 0
    ip.checksum = finish(sum_header(place, head // 4, 0))


cdef inline void blank_options(uint8_t *place, uint32_t head) noexcept nogil:
    """Put no-operations in the place of options that belong into the first fragment only."""
    cdef uint32_t at = IPV4_HEADER_BYTES
    cdef uint32_t n, i
    while at < head and place[at] != OPTION_END:
        n = 1 if place[at] == OPTION_NOP or at + 1 == head else place[at + 1]
        if n == 0 or n > head - at:
            return              # not as options are: left as it came
        if not place[at] & OPTION_COPIED:
            for i in range(n):
                place[at + i] = OPTION_NOP
        at += n
