"""VXLAN (RFC 7348): in front of each inner packet which network it is of, and an Ethernet header with two VtepMACs."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from flannel_udp._fastpath.datapath cimport Bundle, Datapath
from flannel_udp._fastpath.drops cimport (
    BAD_VXLAN_HEADER,
    KEEP,
    NOT_IPV4_FRAME,
    NOT_IPV6_FRAME,
    OTHER_VNI,
    OTHERS_MAC,
    DropReason,
)
from flannel_udp._fastpath.family cimport FAMILY_6, Family
from flannel_udp._fastpath.packet cimport Packet
from flannel_udp._fastpath.wire cimport (
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    IPV4_HEADER_BYTES,
    IPV6_HEADER_BYTES,
    PROTOCOL_UDP,
    VXLAN_HEADING_BYTES,
    VXLAN_VNI_MASK,
    VXLAN_VNI_VALID,
    Ipv4Header,
    Ipv6Header,
    VxlanHeading,
    htonl,
    htons,
    ntohs,
)

cdef enum:
    VXLAN_OUTER_BYTES = 50      # IPv4, UDP, VXLAN and Ethernet


cdef inline void fill_in_heading(
    VxlanHeading *heading, Family family, uint32_t vni, uint64_t own_mac
) noexcept nogil:
    """Write what all our packets have in front; only the peer's MAC is missing. `own_mac` is as in a table."""
    memset(heading, 0, sizeof(VxlanHeading))
    heading.vxlan.flags = htonl(VXLAN_VNI_VALID)
    heading.vxlan.vni = htonl(vni << 8)
    memcpy(heading.ethernet.src, &own_mac, sizeof(heading.ethernet.src))
    heading.ethernet.type = htons(<uint16_t> (ETHERTYPE_IPV6 if family == FAMILY_6 else ETHERTYPE_IPV4))


cdef inline const uint64_t *peer_mac(const Datapath *dp, Family family, uint32_t next_hop) noexcept nogil:
    return &dp.table6.peer_mac[next_hop] if family == FAMILY_6 else &dp.table.peer_mac[next_hop]


cdef inline void write_vxlan_heading(const Datapath *dp, uint8_t *place, uint32_t next_hop) noexcept nogil:
    cdef VxlanHeading *heading = <VxlanHeading *> place
    memcpy(heading, &dp.heading, sizeof(VxlanHeading))
    memcpy(heading.ethernet.dst, peer_mac(dp, dp.family, next_hop), sizeof(heading.ethernet.dst))


cdef inline bint is_whole_super_packet(Family family, const Bundle *bundle) noexcept nogil:
    """Whether a bundle is one datagram with a UDP super-packet in it, `segment_len` the payload of each segment.

    The kernel says UDP_GRO also of what a kernel peer's pod sent with UDP_SEGMENT: over a veth nobody has cut it, and
    the size that it says is that of the inner datagrams.
    """
    cdef const Ipv4Header *ip = <const Ipv4Header *> (bundle.data + VXLAN_HEADING_BYTES)
    cdef const Ipv6Header *ip6 = <const Ipv6Header *> (bundle.data + VXLAN_HEADING_BYTES)
    if family == FAMILY_6:
        return (
            bundle.segment_len < bundle.len
            and bundle.len >= VXLAN_HEADING_BYTES + IPV6_HEADER_BYTES
            and ip6.next_header == PROTOCOL_UDP
            and ntohs(ip6.payload_len) == bundle.len - VXLAN_HEADING_BYTES - IPV6_HEADER_BYTES
        )
    return (
        bundle.segment_len < bundle.len
        and bundle.len >= VXLAN_HEADING_BYTES + IPV4_HEADER_BYTES
        and ip.protocol == PROTOCOL_UDP
        and ntohs(ip.total_len) == bundle.len - VXLAN_HEADING_BYTES
    )


cdef inline DropReason strip_vxlan_heading(const Datapath *dp, Family family, Packet *packet) noexcept nogil:
    """Check what is in front of the inner packet, and let the packet begin behind it."""
    cdef const VxlanHeading *heading = <const VxlanHeading *> packet.data
    if packet.len < VXLAN_HEADING_BYTES:
        packet.len = 0              # nothing in there is an inner header
        return BAD_VXLAN_HEADER
    packet.data += <uint32_t> VXLAN_HEADING_BYTES
    packet.len -= <uint32_t> VXLAN_HEADING_BYTES
    if not heading.vxlan.flags & htonl(VXLAN_VNI_VALID):
        return BAD_VXLAN_HEADER
    if (heading.vxlan.vni ^ dp.heading.vxlan.vni) & htonl(<uint32_t> VXLAN_VNI_MASK):
        return OTHER_VNI
    if heading.ethernet.type != dp.heading.ethernet.type:
        return NOT_IPV6_FRAME if family == FAMILY_6 else NOT_IPV4_FRAME
    if memcmp(heading.ethernet.dst, dp.heading.ethernet.src, sizeof(heading.ethernet.dst)) != 0:
        return OTHERS_MAC
    return KEEP


cdef inline bint has_peers_mac(const Datapath *dp, Family family, const Packet *packet) noexcept nogil:
    """Whether the inner frame's source is the VtepMAC of the peer `packet.next_hop`. The heading is still in front."""
    cdef const VxlanHeading *heading = <const VxlanHeading *> (packet.data - VXLAN_HEADING_BYTES)
    return memcmp(heading.ethernet.src, peer_mac(dp, family, packet.next_hop), sizeof(heading.ethernet.src)) == 0
