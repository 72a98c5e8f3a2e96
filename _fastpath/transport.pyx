"""Walk IPv6's extension headers as far as the transport (RFC 8200 section 4)."""

from libc.stdint cimport uint8_t, uint32_t

from flannel_udp._fastpath.packet cimport packet_at
from flannel_udp._fastpath.wire cimport FRAGMENT6_OFFSET_MASK, NO_NEXT_HEADER, FragmentHeader

cdef enum:
    EXTENSION_HEADERS_MAX = 8   # RFC 8504 section 5.3: what a host has to bear
    LEAST_BYTES = 8             # of an extension header


cdef void walk_extension_headers(const Packet *packet, Transport *transport) noexcept nogil:
    cdef const uint8_t *header
    cdef uint32_t n = 0
    while is_extension_header(transport.protocol):
        header = packet_at(packet, transport.start, LEAST_BYTES)
        if header == NULL or n == EXTENSION_HEADERS_MAX or header_bytes(transport.protocol, header) > (
            packet.len - transport.start
        ):
            transport.protocol = NO_NEXT_HEADER
            transport.is_there = False
            return
        n += 1
        transport.is_routed |= transport.protocol == ROUTING_HEADER
        transport.start += header_bytes(transport.protocol, header)
        if transport.protocol == FRAGMENT_HEADER:
            transport.is_fragment = True
            if ntohs((<const FragmentHeader *> header).offset) & FRAGMENT6_OFFSET_MASK:
                transport.protocol = header[0]
                transport.is_there = False
                return
        transport.protocol = header[0]


cdef inline uint32_t header_bytes(uint8_t number, const uint8_t *header) noexcept nogil:
    """Bytes of an extension header: its second byte says it."""
    if number == FRAGMENT_HEADER:
        return LEAST_BYTES
    if number == AUTHENTICATION_HEADER:
        return (<uint32_t> header[1] + 2) * 4       # RFC 4302 section 2.2
    return (<uint32_t> header[1] + 1) * 8
