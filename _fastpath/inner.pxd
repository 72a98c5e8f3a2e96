"""What a datapath asks of an inner packet whose header was checked, and does to it, for either family.

`family` is a constant: `outbound` and `inbound` are compiled once for each.
"""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcmp

from flannel_udp._fastpath.datapath cimport Datapath, Encapsulation
from flannel_udp._fastpath.drops cimport DropReason
from flannel_udp._fastpath.ecn cimport take_over_ecn, take_over_ecn6, traffic_class
from flannel_udp._fastpath.encapsulation cimport outer_protocol
from flannel_udp._fastpath.family cimport FAMILY_6, Family
from flannel_udp._fastpath.ipv4 cimport decrement_ttl, is_unicast, parse
from flannel_udp._fastpath.ipv6 cimport decrement_hop_limit, is_unicast6, parse6
from flannel_udp._fastpath.packet cimport Packet
from flannel_udp._fastpath.table cimport FIRST_PEER, NO_ROUTE_HOP, lookup, peer_of
from flannel_udp._fastpath.table6 cimport lookup6, peer_of6
from flannel_udp._fastpath.transport cimport find_transport
from flannel_udp._fastpath.wire cimport DONT_FRAGMENT, Ipv4Header, Ipv6Header, ntohl, ntohs


cdef inline Ipv4Header *ip4_of(const Packet *packet) noexcept nogil:
    return <Ipv4Header *> packet.data


cdef inline Ipv6Header *ip6_of(const Packet *packet) noexcept nogil:
    return <Ipv6Header *> packet.data


cdef inline DropReason check_header(Family family, const Packet *packet) noexcept nogil:
    """Whether the header is sound, in itself and for the length of the packet. Nothing else here may come before."""
    cdef Ipv4Header *ip4
    cdef Ipv6Header *ip6
    return parse6(packet, &ip6) if family == FAMILY_6 else parse(packet, &ip4)


cdef inline bint is_own_datagram(
    const Datapath *dp, Encapsulation kind, Family family, const Packet *packet
) noexcept nogil:
    """Whether our own socket sent it, to a peer to whom the host routes through the TUN.

    Encapsulated it would come back again, without end. Its fragments have no ports to tell it by, and a masquerading
    rule gives it the TUN's address and another port: so any UDP (or IP-in-IP) from an address of ours to a peer's own
    address is one, which nobody else has reason to send this way.
    """
    cdef const Ipv4Header *ip4 = ip4_of(packet)
    cdef const Ipv6Header *ip6 = ip6_of(packet)
    if family == FAMILY_6:
        if memcmp(ip6.src, dp.outer_addr6, 16) != 0 and memcmp(ip6.src, dp.table6.own_addr, 16) != 0:
            return False
        return (
            find_transport(family, packet).protocol == outer_protocol(kind)
            and peer_of6(dp.table6, ip6.dst) != NO_ROUTE_HOP
        )
    if ip4.src != dp.outer_addr and ip4.src != dp.table.own_addr:
        return False
    return ip4.protocol == outer_protocol(kind) and peer_of(dp.table, ip4.dst) != NO_ROUTE_HOP


cdef inline bint is_for_a_pod(Family family, const Packet *packet) noexcept nogil:
    """Whether a router may forward it: to a single host, and with IPv6 from one (RFC 4291 section 2.5.6)."""
    if family == FAMILY_6:
        return is_unicast6(ip6_of(packet).dst) and is_unicast6(ip6_of(packet).src)
    return is_unicast(ntohl(ip4_of(packet).dst))


cdef inline uint32_t hop_of_source(const Datapath *dp, Family family, const Packet *packet) noexcept nogil:
    """Look up whose lease the source is in."""
    return lookup6(dp.table6, ip6_of(packet).src) if family == FAMILY_6 else lookup(dp.table, ntohl(ip4_of(packet).src))


cdef inline uint32_t hop_of_destination(const Datapath *dp, Family family, const Packet *packet) noexcept nogil:
    """Look up where it goes."""
    return lookup6(dp.table6, ip6_of(packet).dst) if family == FAMILY_6 else lookup(dp.table, ntohl(ip4_of(packet).dst))


cdef inline bint has_sent(const Datapath *dp, Family family, uint32_t peer, const Packet *packet) noexcept nogil:
    """Whether a packet from the underlay came from the address of this next hop, if it is a peer."""
    if peer < FIRST_PEER:
        return False
    if family == FAMILY_6:
        return memcmp(&dp.table6.peer_addr[peer], packet.outer_addr6, 16) == 0
    return dp.table.peer_addr[peer] == packet.outer_addr


cdef inline uint32_t sender_of(const Datapath *dp, Family family, const Packet *packet) noexcept nogil:
    """The peer that a packet from the underlay came from, or NO_ROUTE_HOP."""
    return peer_of6(dp.table6, packet.outer_addr6) if family == FAMILY_6 else peer_of(dp.table, packet.outer_addr)


cdef inline uint8_t tos_of(Family family, const Packet *packet) noexcept nogil:
    """The TOS byte, or traffic class."""
    return traffic_class(ip6_of(packet)) if family == FAMILY_6 else ip4_of(packet).tos


cdef inline bint take_over_mark(Family family, Packet *packet) noexcept nogil:
    """Carry the outer header's congestion mark into the inner one; False: the packet must be dropped."""
    if family == FAMILY_6:
        return take_over_ecn6(ip6_of(packet), packet.outer_tos)
    return take_over_ecn(ip4_of(packet), packet.outer_tos)


cdef inline bint take_a_hop(Family family, Packet *packet) noexcept nogil:
    """Decrement the TTL, or hop limit; False, and nothing changed, where it would reach 0."""
    return decrement_hop_limit(ip6_of(packet)) if family == FAMILY_6 else decrement_ttl(ip4_of(packet))


cdef inline bint may_be_fragmented(Family family, const Packet *packet) noexcept nogil:
    """Whether the sender lets a router cut it: of IPv6 none does (RFC 8200 section 5)."""
    return family != FAMILY_6 and not ntohs(ip4_of(packet).frag) & DONT_FRAGMENT
