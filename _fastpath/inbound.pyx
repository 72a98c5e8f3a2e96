"""Underlay → TUN, in the order in which a packet meets the steps:

1. receive about a turn's worth (`turn`): datagrams, each one inner packet, many of them joined by the kernel
2. check the inner IPv4 header
3. check who sent it, and whether the inner source is theirs
4. check that the inner destination is ours
5. carry over a congestion mark, decrement the TTL
6. queue it, joined to its predecessor where both are plain segments of one flow
7. write the queue to the TUN; a dropped packet is counted and, where that is right, its sender told
"""

from libc.stdint cimport uint32_t

from flannel_udp._fastpath.answer cimport answer_sender
from flannel_udp._fastpath.coalesce cimport write_queue_add, write_queue_is_full
from flannel_udp._fastpath.datapath cimport RECEIVE_MAX, RECEIVE_MIN, SOURCE_OFF, SOURCE_STRICT, Bundle
from flannel_udp._fastpath.deliver cimport deliver
from flannel_udp._fastpath.drops cimport (
    CONGESTION_LOST,
    KEEP,
    NOT_OUR_SUBNET,
    SPOOFED_SOURCE,
    TTL_EXPIRED,
    UNKNOWN_PEER,
    DropReason,
    count_drops,
)
from flannel_udp._fastpath.ecn cimport take_over_ecn
from flannel_udp._fastpath.ipv4 cimport decrement_ttl, parse
from flannel_udp._fastpath.packet cimport Packet
from flannel_udp._fastpath.routes cimport FIRST_PEER, NO_ROUTE_HOP, OWN_HOP, lookup, peer_of
from flannel_udp._fastpath.sysio cimport udp_receive
from flannel_udp._fastpath.turn cimport TURN_BYTES, TURN_PACKETS
from flannel_udp._fastpath.wire cimport Ipv4Header, ntohl


cdef inline DropReason check_source(const Datapath *dp, Packet *packet, const Ipv4Header *ip) noexcept nogil:
    """Find the peer that sent the datagram and hold it to its own lease."""
    cdef uint32_t owner = lookup(dp.table, ntohl(ip.src))
    if owner >= FIRST_PEER and dp.table.peer_addr[owner] == packet.outer_addr:
        packet.next_hop = owner
        return KEEP                     # nearly every packet: the owner of the inner source sent it
    packet.next_hop = peer_of(dp.table, packet.outer_addr)
    if dp.source_check == SOURCE_OFF:
        return KEEP
    if packet.next_hop == NO_ROUTE_HOP:
        return UNKNOWN_PEER
    if dp.source_check == SOURCE_STRICT and owner != NO_ROUTE_HOP:
        return SPOOFED_SOURCE
    return KEEP


cdef inline DropReason accept(const Datapath *dp, Packet *packet) noexcept nogil:
    """Steps 2 to 5: decide on one packet and make it ready for the TUN."""
    cdef Ipv4Header *ip = NULL
    cdef DropReason reason = parse(packet, &ip)
    if reason != KEEP:
        return reason
    reason = check_source(dp, packet, ip)
    if reason != KEEP:
        return reason
    if lookup(dp.table, ntohl(ip.dst)) != OWN_HOP:
        return NOT_OUR_SUBNET
    if not take_over_ecn(ip, packet.outer_tos):
        return CONGESTION_LOST
    if not decrement_ttl(ip):
        return TTL_EXPIRED
    return KEEP


cdef inline uint32_t bundles_of_a_turn(uint32_t n_bundles, uint32_t n_packets, uint32_t n_bytes) noexcept nogil:
    """How many bundles such as these fit into a turn."""
    cdef uint32_t by_packets = n_bundles * <uint32_t> TURN_PACKETS // n_packets
    cdef uint32_t by_bytes = n_bundles * <uint32_t> TURN_BYTES // max(n_bytes, <uint32_t> 1)
    return max(min(by_packets, by_bytes), <uint32_t> RECEIVE_MIN)


cdef inline void size_next_receive(Datapath *dp, uint32_t n_packets, uint32_t n_bytes) noexcept nogil:
    """Ask for a turn's worth next time, by what came now; for more than that only step by step.

    How long a bundle is nobody knows before it is received. Growing slowly, a sender of long ones that come after short
    ones has one turn that is too long for every five that are not.
    """
    cdef uint32_t fitting
    if dp.n_bundles == 0:
        return
    fitting = bundles_of_a_turn(dp.n_bundles, n_packets, n_bytes)
    if fitting > dp.receive_n:
        if dp.n_bundles < dp.receive_n:
            return                              # it has not come to a full turn yet
        fitting = min(fitting, dp.receive_n + dp.receive_n)
    dp.receive_n = min(fitting, <uint32_t> RECEIVE_MAX)


cdef inline uint32_t forward_bundle(Datapath *dp, const Bundle *bundle) noexcept nogil:
    """Queue or drop the datagrams of a bundle one by one; return how many there were."""
    cdef Packet packet
    cdef DropReason reason
    cdef uint32_t offset = 0
    cdef uint32_t n = 0
    packet.outer_addr = bundle.outer_addr
    packet.outer_tos = bundle.outer_tos
    while n == 0 or offset < bundle.len:        # an empty datagram is one, too
        packet.data = bundle.data + offset
        packet.len = min(bundle.segment_len, bundle.len - offset)
        offset += packet.len
        n += 1
        reason = accept(dp, &packet)
        if reason == KEEP:
            if write_queue_is_full(&dp.write_queue):
                deliver(dp)
            write_queue_add(&dp.write_queue, &packet)
            continue
        count_drops(&dp.in_counters, reason, 1)
        if reason == TTL_EXPIRED:
            answer_sender(dp, &packet, reason)
    return n


cdef uint32_t inbound_batch(Datapath *dp) noexcept nogil:
    cdef uint32_t n_received = 0
    cdef uint32_t n_bytes = 0
    cdef uint32_t i
    udp_receive(dp)
    for i in range(dp.n_bundles):
        n_bytes += dp.bundles[i].len
        n_received += forward_bundle(dp, &dp.bundles[i])
    deliver(dp)
    size_next_receive(dp, n_received, n_bytes)
    return n_received
