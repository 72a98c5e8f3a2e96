"""What stands between the outer header and the inner packet: the one place that knows all encapsulations.

`outbound` and `inbound` are compiled once for each, and for each family. There `kind` and `family` are constants, and
none pays for another.
"""

from libc.stdint cimport uint8_t, uint32_t

from flannel_udp._fastpath.datapath cimport ENCAP_IPIP, ENCAP_UDP, ENCAP_VXLAN, Datapath, Encapsulation
from flannel_udp._fastpath.drops cimport KEEP, DropReason
from flannel_udp._fastpath.encap_ipip cimport IPIP_OUTER_BYTES, strip_outer_header
from flannel_udp._fastpath.encap_udp cimport UDP_OUTER_BYTES
from flannel_udp._fastpath.encap_vxlan cimport VXLAN_OUTER_BYTES, strip_vxlan_heading, write_vxlan_heading
from flannel_udp._fastpath.family cimport FAMILY_6, Family
from flannel_udp._fastpath.ipv4 cimport cut_padding
from flannel_udp._fastpath.ipv6 cimport cut_padding6
from flannel_udp._fastpath.packet cimport Packet
from flannel_udp._fastpath.wire cimport PROTOCOL_IPIP, PROTOCOL_UDP, VXLAN_HEADING_BYTES

cdef enum:
    OUTER_IPV6_MORE_BYTES = 20  # an IPv6 header is 40 bytes, IPv4's 20 (RFC 8200 section 3)


cdef inline uint32_t outer_bytes(Encapsulation kind, Family family) noexcept nogil:
    """Bytes that a packet on the underlay has beside the inner one."""
    if family == FAMILY_6:
        return outer_bytes4(kind) + OUTER_IPV6_MORE_BYTES
    return outer_bytes4(kind)


cdef inline uint32_t outer_bytes4(Encapsulation kind) noexcept nogil:
    if kind == ENCAP_VXLAN:
        return VXLAN_OUTER_BYTES
    if kind == ENCAP_IPIP:
        return IPIP_OUTER_BYTES
    return UDP_OUTER_BYTES


cdef inline uint8_t outer_protocol(Encapsulation kind) noexcept nogil:
    """The protocol number of the outer IP header."""
    if kind == ENCAP_IPIP:
        return PROTOCOL_IPIP
    return PROTOCOL_UDP


cdef inline uint32_t heading_bytes(Encapsulation kind) noexcept nogil:
    """Those of them that we write ourselves, in front of the inner packet."""
    return VXLAN_HEADING_BYTES if kind == ENCAP_VXLAN else 0


cdef inline void write_heading(
    const Datapath *dp, Encapsulation kind, uint8_t *place, uint32_t next_hop
) noexcept nogil:
    """Write them to `place`."""
    if kind == ENCAP_VXLAN:
        write_vxlan_heading(dp, place, next_hop)


cdef inline DropReason decapsulate(
    const Datapath *dp, Encapsulation kind, Family family, Packet *packet
) noexcept nogil:
    """Let the packet be the inner one, without what is in front of it, and without padding behind it."""
    cdef DropReason reason
    if kind == ENCAP_UDP:
        return KEEP
    reason = strip_vxlan_heading(dp, family, packet) if kind == ENCAP_VXLAN else strip_outer_header(packet)
    if reason == KEEP and family == FAMILY_6:
        cut_padding6(packet)
    elif reason == KEEP:
        cut_padding(packet)
    return reason


cdef inline bint tunnel_is_a_hop(Encapsulation kind) noexcept nogil:
    """Whether both ends of the tunnel take one from the TTL, as flanneld's udp does; a network device is no hop."""
    return kind == ENCAP_UDP
