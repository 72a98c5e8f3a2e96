"""TUN → underlay, in the order in which a packet meets the steps:

1. read a batch from the TUN
2. take off the virtio-net header
3. check the inner IPv4 header
4. look up the next hop
5. decrement the TTL
6. address the datagram
7. send the batch; a dropped packet is counted and, where that is right, its sender told
"""

from flannel_udp._fastpath.answer cimport answer_sender
from flannel_udp._fastpath.drops cimport (
    KEEP,
    NO_ROUTE,
    NOT_UNICAST,
    OWN_SUBNET,
    TOO_SHORT,
    TTL_EXPIRED,
    UNSPLIT,
    DropReason,
    count_drop,
)
from flannel_udp._fastpath.encap_udp cimport encapsulate_udp
from flannel_udp._fastpath.ipv4 cimport decrement_ttl, is_unicast, parse
from flannel_udp._fastpath.packet cimport Batch, Packet, batch_keep, packet_pull
from flannel_udp._fastpath.routes cimport NO_ROUTE_HOP, OWN_HOP, lookup
from flannel_udp._fastpath.sysio cimport tun_read, udp_send
from flannel_udp._fastpath.wire cimport Ipv4Header, VirtioNetHeader, ntohl

cdef enum:
    VIRTIO_NET_HDR_GSO_NONE = 0


cdef inline DropReason take_vnet_header(const Datapath *dp, Packet *packet) noexcept nogil:
    cdef VirtioNetHeader *header
    if dp.vnet_bytes == 0:
        return KEEP
    header = <VirtioNetHeader *> packet_pull(packet, dp.vnet_bytes)
    if header == NULL:
        return TOO_SHORT
    if header.gso_type != VIRTIO_NET_HDR_GSO_NONE:
        return UNSPLIT
    return KEEP


cdef inline DropReason forward(const Datapath *dp, Packet *packet) noexcept nogil:
    """Steps 2 to 5: decide on one packet and make it ready to leave."""
    cdef Ipv4Header *ip = NULL
    cdef uint32_t dst
    cdef DropReason reason = take_vnet_header(dp, packet)
    if reason != KEEP:
        return reason
    reason = parse(packet, &ip)
    if reason != KEEP:
        return reason
    dst = ntohl(ip.dst)
    if not is_unicast(dst):
        return NOT_UNICAST
    packet.next_hop = lookup(dp.table, dst)
    if packet.next_hop == NO_ROUTE_HOP:
        return NO_ROUTE
    if packet.next_hop == OWN_HOP:
        return OWN_SUBNET
    if not decrement_ttl(ip):
        return TTL_EXPIRED
    return KEEP


cdef uint32_t outbound_batch(Datapath *dp) noexcept nogil:
    cdef Batch *batch = &dp.outbound
    cdef DropReason reason
    cdef uint32_t n_read, i
    cdef uint32_t kept = 0
    tun_read(dp, batch)
    n_read = batch.n
    for i in range(n_read):
        reason = forward(dp, &batch.packets[i])
        if reason == KEEP:
            batch_keep(batch, kept, i)
            kept += 1
        else:
            count_drop(&dp.out_counters, reason)
            answer_sender(dp, &batch.packets[i], reason)
    batch.n = kept
    encapsulate_udp(dp.table, batch)
    udp_send(dp, batch)
    return n_read
