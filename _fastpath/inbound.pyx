"""Underlay → TUN, in the order in which a packet meets the steps:

1. receive about a turn's worth (`turn`): datagrams, each one inner packet, many of them joined by the kernel
2. check what is in front of the inner packet, and the inner header
3. check who sent it, and whether the inner source is theirs
4. check that the inner destination is ours
5. carry over a congestion mark; decrement the TTL or hop limit, where the tunnel is a hop
6. see whether a kernel peer left its checksum, or its cutting, to a network card (`offloaded`); not with udp
7. queue it, joined to its predecessor where both are plain segments of one flow
8. write the queue to the TUN; a dropped packet is counted and, where that is right, its sender told
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from flannel_udp._fastpath.answer cimport answer_sender
from flannel_udp._fastpath.capture cimport ALTERED_MAX, Original, capture_received, save_original
from flannel_udp._fastpath.coalesce cimport write_queue_add, write_queue_add6, write_queue_is_full
from flannel_udp._fastpath.datapath cimport (
    ENCAP_IPIP,
    ENCAP_UDP,
    ENCAP_VXLAN,
    RECEIVE_MAX,
    RECEIVE_MIN,
    SOURCE_OFF,
    SOURCE_STRICT,
    Bundle,
    Encapsulation,
)
from flannel_udp._fastpath.deliver cimport deliver
from flannel_udp._fastpath.drops cimport (
    CONGESTION_LOST,
    KEEP,
    NOT_OUR_SUBNET,
    NOT_UNICAST,
    SPOOFED_MAC,
    SPOOFED_SOURCE,
    TTL_EXPIRED,
    UNKNOWN_PEER,
    DropReason,
    begin_batch,
    count_drops,
)
from flannel_udp._fastpath.encap_vxlan cimport has_peers_mac, is_whole_super_packet
from flannel_udp._fastpath.encapsulation cimport decapsulate, tunnel_is_a_hop
from flannel_udp._fastpath.family cimport FAMILY_4, FAMILY_6, Family
from flannel_udp._fastpath.inner cimport (
    check_header,
    has_sent,
    hop_of_destination,
    hop_of_source,
    is_for_a_pod,
    sender_of,
    take_a_hop,
    take_over_mark,
)
from flannel_udp._fastpath.offloaded cimport recognise_offload, recognise_offload6
from flannel_udp._fastpath.packet cimport Packet
from flannel_udp._fastpath.sysio cimport udp_receive
from flannel_udp._fastpath.table cimport NO_ROUTE_HOP, OWN_HOP
from flannel_udp._fastpath.turn cimport TURN_BYTES, TURN_PACKETS


cdef extern from "whole_batch.h":
    pass


cdef inline DropReason check_source(
    const Datapath *dp, Encapsulation kind, Family family, Packet *packet
) noexcept nogil:
    """Find the peer that sent the datagram and hold it to its own lease, and to its MAC."""
    cdef DropReason reason = check_address(dp, family, packet)
    if kind != ENCAP_VXLAN or reason != KEEP or dp.source_check == SOURCE_OFF:
        return reason
    return KEEP if has_peers_mac(dp, family, packet) else SPOOFED_MAC


cdef inline DropReason check_address(const Datapath *dp, Family family, Packet *packet) noexcept nogil:
    cdef uint32_t owner = hop_of_source(dp, family, packet)
    if has_sent(dp, family, owner, packet):
        packet.next_hop = owner
        return KEEP                     # nearly every packet: the owner of the inner source sent it
    packet.next_hop = sender_of(dp, family, packet)
    if dp.source_check == SOURCE_OFF:
        return KEEP
    if packet.next_hop == NO_ROUTE_HOP:
        return UNKNOWN_PEER
    if dp.source_check == SOURCE_STRICT and owner != NO_ROUTE_HOP:
        return SPOOFED_SOURCE
    return KEEP


cdef inline DropReason accept(Datapath *dp, Encapsulation kind, Family family, Packet *packet) noexcept nogil:
    """Steps 2 to 6: decide on one packet and make it ready for the TUN."""
    cdef DropReason reason = decapsulate(dp, kind, family, packet)
    if reason != KEEP:
        return reason
    reason = check_header(family, packet)
    if reason != KEEP:
        return reason
    # A link-local source is in no lease, and would pass for one that nobody has. Of IPv4 no lease has such addresses.
    if family == FAMILY_6 and not is_for_a_pod(family, packet):
        return NOT_UNICAST
    reason = check_source(dp, kind, family, packet)
    if reason != KEEP:
        return reason
    if hop_of_destination(dp, family, packet) != OWN_HOP:
        return NOT_OUR_SUBNET
    if not take_over_mark(family, packet):
        return CONGESTION_LOST
    if tunnel_is_a_hop(kind) and not take_a_hop(family, packet):
        return TTL_EXPIRED
    if kind != ENCAP_UDP and family == FAMILY_6:
        recognise_offload6(dp, packet)
    elif kind != ENCAP_UDP:
        recognise_offload(dp, packet)
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


cdef inline uint32_t forward_bundle(
    Datapath *dp, Encapsulation kind, Family family, const Bundle *bundle, bint captures
) noexcept nogil:
    """Queue or drop the datagrams of a bundle one by one; return how many there were."""
    cdef Packet packet
    cdef Original original
    cdef DropReason reason
    cdef uint32_t segment_len = bundle.segment_len
    cdef uint32_t offset = 0
    cdef uint32_t n = 0
    packet.outer_addr = bundle.outer_addr if family == FAMILY_4 else 0
    packet.outer_addr6 = <const uint8_t *> bundle.outer_addr6 if family == FAMILY_6 else NULL
    packet.outer_tos = bundle.outer_tos
    packet.partial = False
    packet.gso_size = 0
    if kind == ENCAP_VXLAN and is_whole_super_packet(family, bundle):
        packet.gso_size = <uint16_t> bundle.segment_len
        segment_len = bundle.len
    while n == 0 or offset < bundle.len:        # an empty datagram is one, too
        packet.data = bundle.data + offset
        packet.len = min(segment_len, bundle.len - offset)
        offset += packet.len
        n += 1
        if captures:
            save_original(&original, &packet, ALTERED_MAX)
        reason = accept(dp, kind, family, &packet)
        if captures:
            capture_received(dp, &original, bundle, &packet, reason)
        if reason == KEEP:
            if write_queue_is_full(&dp.write_queue):
                deliver(dp)
            if family == FAMILY_6:
                write_queue_add6(&dp.write_queue, &packet)
            else:
                write_queue_add(&dp.write_queue, &packet)
            continue
        count_drops(&dp.in_counters, reason, 1, &packet)
        if reason == TTL_EXPIRED:
            answer_sender(dp, &packet, reason)
    return n


cdef inline uint32_t move_in(Datapath *dp, Encapsulation kind, Family family, bint captures) noexcept nogil:
    cdef uint32_t n_received = 0
    cdef uint32_t n_bytes = 0
    cdef uint32_t i
    udp_receive(dp)
    begin_batch(&dp.in_counters)
    for i in range(dp.n_bundles):
        n_bytes += dp.bundles[i].len
        n_received += forward_bundle(dp, kind, family, &dp.bundles[i], captures)
    deliver(dp)
    size_next_receive(dp, n_received, n_bytes)
    return n_received


cdef inline uint32_t move_in_alone(Datapath *dp, Encapsulation kind, bint captures) noexcept nogil:
    if dp.family == FAMILY_6:
        return move_in(dp, kind, FAMILY_6, captures)
    return move_in(dp, kind, FAMILY_4, captures)


cdef inline uint32_t move_in_of(Datapath *dp, bint captures) noexcept nogil:
    if dp.encapsulation == ENCAP_UDP:
        return move_in_alone(dp, ENCAP_UDP, captures)
    if dp.encapsulation == ENCAP_VXLAN:
        return move_in_alone(dp, ENCAP_VXLAN, captures)
    return move_in(dp, ENCAP_IPIP, FAMILY_4, captures)


cdef uint32_t inbound_batch(Datapath *dp) noexcept nogil:
    return move_in_of(dp, False)


cdef uint32_t inbound_batch_captured(Datapath *dp) noexcept nogil:
    return move_in_of(dp, True)


cdef DropReason try_accept(Datapath *dp, Packet *packet) noexcept nogil:
    return accept(dp, dp.encapsulation, dp.family, packet)
