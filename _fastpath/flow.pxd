"""Which flow an inner packet is of: what fair queues, several links and receive queues of the underlay tell apart."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from flannel_udp._fastpath.family cimport FAMILY_6, Family
from flannel_udp._fastpath.packet cimport Packet, packet_at
from flannel_udp._fastpath.transport cimport Transport, find_transport
from flannel_udp._fastpath.wire cimport PROTOCOL_TCP, PROTOCOL_UDP, Ipv4Header


cdef inline uint32_t flow_of(Family family, const Packet *packet) noexcept nogil:
    """Return a number that all packets of a flow share: of the addresses, the protocol, and TCP's and UDP's ports.

    A fragment's ports are not looked at: only the first one has them. Nor is IPv6's flow label: TCP changes it within a
    connection (RFC 6438 would rather have it).
    """
    cdef uint64_t golden = 0x9e3779b97f4a7c15   # 2^64 divided by the golden ratio
    cdef Transport transport = find_transport(family, packet)
    cdef uint64_t[4] words
    cdef uint64_t key = 0
    cdef uint32_t ports = 0
    cdef const uint8_t *place = NULL
    if family == FAMILY_6:
        memcpy(words, packet.data + 8, sizeof(words))                   # source and destination
        key = ((words[0] ^ words[2]) * golden + words[1]) * golden + words[3]
    else:
        memcpy(&key, &(<const Ipv4Header *> packet.data).src, 8)        # likewise
    if (transport.protocol == PROTOCOL_TCP or transport.protocol == PROTOCOL_UDP) and not transport.is_fragment:
        place = packet_at(packet, transport.start, 4)
    if place != NULL:
        memcpy(&ports, place, 4)
    # A product's upper half depends on all bits of the factor, its lower half does not: fold the one onto the other.
    key *= golden
    key = (key ^ (key >> 32) ^ transport.protocol ^ (<uint64_t> ports << 8)) * golden
    return <uint32_t> (key >> 32)
