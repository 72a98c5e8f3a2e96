"""IP-in-IP (RFC 2003) by raw sockets of protocol 4: the kernel writes the outer header, and reads it to us."""

from flannel_udp._fastpath.drops cimport BAD_OUTER_HEADER, KEEP, DropReason
from flannel_udp._fastpath.packet cimport Packet, packet_at
from flannel_udp._fastpath.wire cimport (
    FRAG_OFFSET_MASK,
    IPV4_HEADER_BYTES,
    MORE_FRAGMENTS,
    PROTOCOL_IPIP,
    Ipv4Header,
    ntohs,
)

cdef enum:
    IPIP_OUTER_BYTES = 20       # IPv4
    WITHOUT_OPTIONS = 0x45      # version and IHL: no tunnel sends options, and nobody would look at them


cdef inline DropReason strip_outer_header(Packet *packet) noexcept nogil:
    """Check the outer header, and let the packet begin behind it. Its checksum the kernel has verified."""
    cdef const Ipv4Header *outer = <const Ipv4Header *> packet_at(packet, 0, IPV4_HEADER_BYTES)
    if (
        outer == NULL
        or outer.version_ihl != WITHOUT_OPTIONS
        or ntohs(outer.total_len) != packet.len
        or outer.protocol != PROTOCOL_IPIP
        or ntohs(outer.frag) & (MORE_FRAGMENTS | FRAG_OFFSET_MASK)     # the kernel puts fragments together before
    ):
        return BAD_OUTER_HEADER
    packet.outer_tos = outer.tos
    packet.data += IPV4_HEADER_BYTES
    packet.len -= IPV4_HEADER_BYTES
    return KEEP
