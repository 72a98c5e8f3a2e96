"""TUN → underlay, in the order in which a packet meets the steps:

1. read a packet, or a super-packet of up to 64 KiB, from the TUN
2. check the inner IPv4 header
3. look up the next hop
4. decrement the TTL
5. see whether it fits the path; split a super-packet; complete a partial checksum; queue what comes out
6. send the queue when the TUN is empty or the turn is over (`turn`); a dropped packet is counted and, where that is
   right, its sender told
"""

from libc.stdint cimport uint16_t, uint32_t
from libc.string cimport memcpy

from flannel_udp._fastpath.answer cimport answer_sender
from flannel_udp._fastpath.drops cimport (
    KEEP,
    NO_ROUTE,
    NOT_UNICAST,
    OWN_SUBNET,
    TOO_BIG,
    TTL_EXPIRED,
    DropReason,
    count_drops,
)
from flannel_udp._fastpath.ecn cimport outer_tos
from flannel_udp._fastpath.ipv4 cimport decrement_ttl, is_unicast, parse
from flannel_udp._fastpath.packet cimport Packet
from flannel_udp._fastpath.pathmtu cimport exceeds_path_mtu
from flannel_udp._fastpath.routes cimport NO_ROUTE_HOP, OWN_HOP, lookup
from flannel_udp._fastpath.sendqueue cimport TO_FRAGMENT, queue_commit, queue_end, queue_has_room
from flannel_udp._fastpath.split cimport Split, complete_checksum, plan_split, write_segment
from flannel_udp._fastpath.sysio cimport tun_read
from flannel_udp._fastpath.transmit cimport transmit
from flannel_udp._fastpath.turn cimport turn_is_over
from flannel_udp._fastpath.wire cimport (
    DONT_FRAGMENT,
    VNET_GSO_NONE,
    VNET_NEEDS_CSUM,
    Ipv4Header,
    VirtioNetHeader,
    ntohl,
    ntohs,
)


cdef inline DropReason route(const Datapath *dp, Packet *packet, Ipv4Header **ip) noexcept nogil:
    """Steps 2 to 4: decide where one packet goes."""
    cdef uint32_t dst
    cdef DropReason reason = parse(packet, ip)
    if reason != KEEP:
        return reason
    dst = ntohl(ip[0].dst)
    if not is_unicast(dst):
        return NOT_UNICAST
    packet.next_hop = lookup(dp.table, dst)
    if packet.next_hop == NO_ROUTE_HOP:
        return NO_ROUTE
    if packet.next_hop == OWN_HOP:
        return OWN_SUBNET
    if not decrement_ttl(ip[0]):
        return TTL_EXPIRED
    return KEEP


cdef inline void transmit_if_full(Datapath *dp, uint32_t n_bytes) noexcept nogil:
    if not queue_has_room(&dp.send_queue, n_bytes):
        transmit(dp)


cdef inline DropReason enqueue(
    Datapath *dp, const VirtioNetHeader *vnet, Packet *packet, const Ipv4Header *ip, uint32_t *n_packets
) noexcept nogil:
    """Step 5: queue the packet, or the segments of a super-packet; `n_packets` is raised by how many there are."""
    cdef Split split
    cdef DropReason reason = KEEP
    cdef uint32_t n_bytes, i
    cdef uint16_t how = outer_tos(ip, dp.dscp)
    if vnet.gso_type == VNET_GSO_NONE:
        if exceeds_path_mtu(dp, packet.next_hop, packet.len):
            if ntohs(ip.frag) & DONT_FRAGMENT:
                return TOO_BIG      # RFC 1191 section 5
            how |= <uint16_t> TO_FRAGMENT
        if vnet.flags & VNET_NEEDS_CSUM:
            reason = complete_checksum(vnet, packet)
            if reason != KEEP:
                return reason
        transmit_if_full(dp, packet.len)
        memcpy(queue_end(&dp.send_queue), packet.data, packet.len)
        queue_commit(&dp.send_queue, packet.len, packet.next_hop, how)
        n_packets[0] += 1
        return KEEP
    reason = plan_split(&split, vnet, packet, ip)
    if reason != KEEP:
        return reason
    if exceeds_path_mtu(dp, packet.next_hop, split.header_len + split.segment_payload):
        if ntohs(ip.frag) & DONT_FRAGMENT:
            return TOO_BIG
        how |= <uint16_t> TO_FRAGMENT
    for i in range(split.n):
        transmit_if_full(dp, split.header_len + split.segment_payload)
        n_bytes = write_segment(&split, packet, i, queue_end(&dp.send_queue))
        queue_commit(&dp.send_queue, n_bytes, packet.next_hop, how)
    n_packets[0] += split.n
    return KEEP


cdef uint32_t outbound_batch(Datapath *dp) noexcept nogil:
    cdef VirtioNetHeader vnet
    cdef Packet packet
    cdef Ipv4Header *ip = NULL
    cdef DropReason reason
    cdef uint32_t n_read = 0
    cdef uint32_t n_packets = 0
    cdef uint32_t n_bytes = 0
    while not turn_is_over(n_packets, n_bytes) and tun_read(dp, &vnet, &packet):
        n_read += 1
        n_bytes += packet.len
        reason = route(dp, &packet, &ip)
        if reason == KEEP:
            reason = enqueue(dp, &vnet, &packet, ip, &n_packets)
        if reason != KEEP:
            n_packets += 1
            count_drops(&dp.out_counters, reason, 1)
            answer_sender(dp, &packet, reason)
    transmit(dp)
    return n_read
