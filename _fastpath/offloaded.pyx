"""Recognise partial checksums and super-packets from kernel peers, and tell the TUN of them."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from flannel_udp._fastpath.atomics cimport load_word
from flannel_udp._fastpath.checksum cimport fold
from flannel_udp._fastpath.family cimport FAMILY_4, FAMILY_6, Family
from flannel_udp._fastpath.packet cimport packet_at
from flannel_udp._fastpath.transport cimport (
    Transport,
    family_of,
    find_transport,
    is_plain,
    sum_pseudo_header_of,
    tcp_gso_type,
    transport_checksum,
)
from flannel_udp._fastpath.wire cimport (
    PROTOCOL_TCP,
    PROTOCOL_UDP,
    TCP_CHECKSUM_OFFSET,
    TCP_CWR,
    TCP_HEADER_BYTES,
    UDP_CHECKSUM_OFFSET,
    UDP_HEADER_BYTES,
    VNET_GSO_ECN,
    VNET_GSO_UDP_L4,
    VNET_NEEDS_CSUM,
    TcpHeader,
    be16,
)


cdef void recognise_offload(Datapath *dp, Packet *packet) noexcept nogil:
    recognise(dp, FAMILY_4, packet)


cdef void recognise_offload6(Datapath *dp, Packet *packet) noexcept nogil:
    recognise(dp, FAMILY_6, packet)


cdef inline void recognise(Datapath *dp, Family family, Packet *packet) noexcept nogil:
    cdef Transport transport = find_transport(family, packet)
    cdef uint32_t headers = headers_len(packet, &transport)
    cdef uint32_t said = packet.gso_size
    cdef uint32_t mtu = <uint32_t> load_word(&dp.inner_mtu)
    cdef uint32_t cut = min(mtu, <uint32_t> CUT_MAX)
    cdef uint8_t *field
    cdef bint whole
    cdef be16 held, begun
    packet.partial = False
    packet.gso_size = 0
    if headers == 0:
        return
    field = packet.data + transport.start + checksum_offset(transport.protocol)
    memcpy(&held, field, sizeof(held))
    if held == 0 and transport.protocol == PROTOCOL_UDP:
        return                          # RFC 768: the sender made none
    begun = fold(sum_pseudo_header_of(family, packet.data, transport.protocol, packet.len - transport.start))
    if transport.protocol == PROTOCOL_TCP:
        said = cut - headers if packet.len > mtu and cut > headers else 0
    whole = 0 < said < packet.len - headers
    if not whole and not is_same_sum(held, begun):
        return                          # nearly every packet of a peer that finishes what it sends
    if transport_checksum(family, packet, transport.start, transport.protocol) == 0:
        if not whole:
            return
    elif not is_same_sum(held, begun):
        return                          # damaged: it goes on as it came, and the receiver finds it out
    else:
        dp.offloaded_in.partial_checksums += 1
    packet.partial = True
    memcpy(field, &begun, sizeof(begun))
    if whole:
        packet.gso_size = <uint16_t> said
        dp.offloaded_in.super_packets += 1


cdef inline uint32_t headers_len(const Packet *packet, const Transport *transport) noexcept nogil:
    """Bytes of the IP and the TCP or UDP header; 0 where there is no whole segment with such a one."""
    cdef uint32_t start = transport.start
    cdef const TcpHeader *tcp
    if not is_plain(transport):
        return 0                        # its checksum is of more, or of other addresses, than what is here
    if transport.protocol == PROTOCOL_UDP:
        return start + UDP_HEADER_BYTES if packet_at(packet, start, UDP_HEADER_BYTES) != NULL else 0
    if transport.protocol != PROTOCOL_TCP:
        return 0
    tcp = <const TcpHeader *> packet_at(packet, start, TCP_HEADER_BYTES)
    if tcp == NULL or tcp.data_offset >> 4 < 5:
        return 0
    start += <uint32_t> (tcp.data_offset >> 4) * 4
    return start if start <= packet.len else 0


cdef inline uint32_t checksum_offset(uint8_t protocol) noexcept nogil:
    if protocol == PROTOCOL_TCP:
        return TCP_CHECKSUM_OFFSET
    return UDP_CHECKSUM_OFFSET


cdef inline bint is_same_sum(be16 a, be16 b) noexcept nogil:
    """Whether two sums are one: one's complement has two zeros."""
    return a == b or (a == 0 and b == 0xffff)


cdef void describe_offload(const Packet *packet, VirtioNetHeader *vnet) noexcept nogil:
    cdef Family family = family_of(packet)
    cdef Transport transport = find_transport(family, packet)
    vnet.flags = VNET_NEEDS_CSUM
    vnet.csum_start = <uint16_t> transport.start
    vnet.csum_offset = <uint16_t> checksum_offset(transport.protocol)
    if packet.gso_size == 0:
        return
    vnet.gso_size = packet.gso_size
    vnet.hdr_len = <uint16_t> headers_len(packet, &transport)
    vnet.gso_type = VNET_GSO_UDP_L4
    if transport.protocol == PROTOCOL_TCP:
        vnet.gso_type = tcp_gso_type(family)
        if (<const TcpHeader *> (packet.data + transport.start)).flags & TCP_CWR:
            vnet.gso_type |= VNET_GSO_ECN
