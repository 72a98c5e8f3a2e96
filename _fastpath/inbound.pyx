"""Underlay → TUN, in the order in which a packet meets the steps:

1. receive a batch of datagrams; the payload of each is one inner packet
2. check the inner IPv4 header
3. check who sent it, and whether the inner source is theirs
4. check that the inner destination is ours
5. decrement the TTL
6. write the batch to the TUN; a dropped packet is counted and, where that is right, its sender told
"""

from flannel_udp._fastpath.answer cimport answer_sender
from flannel_udp._fastpath.datapath cimport SOURCE_OFF, SOURCE_STRICT
from flannel_udp._fastpath.drops cimport (
    KEEP,
    NOT_OUR_SUBNET,
    SPOOFED_SOURCE,
    TTL_EXPIRED,
    UNKNOWN_PEER,
    DropReason,
    count_drop,
)
from flannel_udp._fastpath.ipv4 cimport decrement_ttl, parse
from flannel_udp._fastpath.packet cimport Batch, Packet, batch_keep
from flannel_udp._fastpath.routes cimport FIRST_PEER, NO_ROUTE_HOP, OWN_HOP, lookup, peer_of
from flannel_udp._fastpath.sysio cimport tun_write, udp_receive
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
    if not decrement_ttl(ip):
        return TTL_EXPIRED
    return KEEP


cdef uint32_t inbound_batch(Datapath *dp) noexcept nogil:
    cdef Batch *batch = &dp.inbound
    cdef DropReason reason
    cdef uint32_t n_received, i
    cdef uint32_t kept = 0
    udp_receive(dp, batch)
    n_received = batch.n
    for i in range(n_received):
        reason = accept(dp, &batch.packets[i])
        if reason == KEEP:
            batch_keep(batch, kept, i)
            kept += 1
        else:
            count_drop(&dp.in_counters, reason)
            if reason == TTL_EXPIRED:
                answer_sender(dp, &batch.packets[i], reason)
    batch.n = kept
    tun_write(dp, batch)
    return n_received
