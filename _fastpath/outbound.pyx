"""TUN → underlay, in the order in which a packet meets the steps:

1. read a packet, or a super-packet of up to 64 KiB, from the TUN
2. check the inner header
3. drop what our own socket sent, and what no router forwards; look up the next hop
4. decrement the TTL or hop limit, where the tunnel is a hop
5. check what the virtio-net header says; see whether it fits the path; split a super-packet, complete a partial
   checksum; queue what comes out, behind what the encapsulation puts in front
6. send the queue when the TUN is empty or the turn is over (`turn`); a dropped packet is counted and, where that is
   right, its sender told
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from flannel_udp._fastpath.answer cimport answer_sender
from flannel_udp._fastpath.capture cimport Original, capture_read, save_original
from flannel_udp._fastpath.datapath cimport ENCAP_IPIP, ENCAP_UDP, ENCAP_VXLAN, Encapsulation
from flannel_udp._fastpath.drops cimport (
    KEEP,
    LOOPED,
    NO_ROUTE,
    NOT_UNICAST,
    OWN_SUBNET,
    TOO_BIG,
    TTL_EXPIRED,
    DropReason,
    begin_batch,
    count_drops,
)
from flannel_udp._fastpath.ecn cimport outer_tos
from flannel_udp._fastpath.encapsulation cimport heading_bytes, tunnel_is_a_hop
from flannel_udp._fastpath.family cimport FAMILY_4, FAMILY_6, Family
from flannel_udp._fastpath.flow cimport flow_of
from flannel_udp._fastpath.fragment cimport queue_fragments
from flannel_udp._fastpath.inner cimport (
    check_header,
    hop_of_destination,
    is_for_a_pod,
    is_own_datagram,
    may_be_fragmented,
    take_a_hop,
    tos_of,
)
from flannel_udp._fastpath.outer_address cimport name_outer_end
from flannel_udp._fastpath.packet cimport Packet
from flannel_udp._fastpath.pathmtu cimport exceeds_path_mtu, is_probe, path_mtu, probed_mtu
from flannel_udp._fastpath.segmenting cimport takes_no_runs
from flannel_udp._fastpath.sendqueue cimport ALONE, SOURCE_PORT_SHIFT, TO_FRAGMENT
from flannel_udp._fastpath.split cimport Split, complete_checksum, plan_split, write_segment
from flannel_udp._fastpath.sysio cimport tun_read
from flannel_udp._fastpath.table cimport NO_ROUTE_HOP, OWN_HOP
from flannel_udp._fastpath.transmit cimport place_to_send, send_later, transmit
from flannel_udp._fastpath.transport cimport ip_header_bytes, least_transport_start
from flannel_udp._fastpath.turn cimport turn_is_over
from flannel_udp._fastpath.wire cimport UDP_PAYLOAD_MAX_BYTES, VNET_GSO_NONE, VNET_NEEDS_CSUM, VirtioNetHeader


cdef extern from "whole_batch.h":
    pass


cdef inline DropReason route(const Datapath *dp, Encapsulation kind, Family family, Packet *packet) noexcept nogil:
    """Steps 2 to 4: decide where one packet goes."""
    cdef DropReason reason = check_header(family, packet)
    if reason != KEEP:
        packet.next_hop = NO_ROUTE_HOP
        return reason
    if is_own_datagram(dp, kind, family, packet):
        packet.next_hop = NO_ROUTE_HOP
        return LOOPED
    if not is_for_a_pod(family, packet):
        packet.next_hop = NO_ROUTE_HOP
        return NOT_UNICAST
    packet.next_hop = hop_of_destination(dp, family, packet)
    if packet.next_hop == NO_ROUTE_HOP:
        return NO_ROUTE
    if packet.next_hop == OWN_HOP:
        return OWN_SUBNET
    if tunnel_is_a_hop(kind) and not take_a_hop(family, packet):
        return TTL_EXPIRED
    return KEEP


cdef void queue_segments_in_fragments(
    Datapath *dp, const Packet *packet, const Split *split, uint16_t how
) noexcept nogil:
    """Queue the segments of a super-packet, none a fragment itself (`plan_split`), each in fragments."""
    cdef Packet segment = packet[0]
    cdef uint32_t i
    segment.data = dp.receive_arena     # which holds nothing that is still wanted: `inbound_batch` has delivered it
    for i in range(split.n):
        segment.len = write_segment(split, packet, i, segment.data)
        queue_fragments(dp, &segment, how, path_mtu(dp, packet.next_hop))


cdef inline DropReason enqueue(
    Datapath *dp, Encapsulation kind, Family family, const VirtioNetHeader *vnet, Packet *packet
) noexcept nogil:
    """Step 5: queue the packet, or the segments of a super-packet."""
    cdef Split split
    cdef DropReason reason = KEEP
    cdef uint32_t n_bytes, i
    cdef uint8_t *place
    cdef uint16_t how = outer_tos(tos_of(family, packet), dp.outer_tos)
    if dp.n_ports != 1:
        how |= <uint16_t> ((flow_of(family, packet) & (dp.n_ports - 1)) << SOURCE_PORT_SHIFT)
    if dp.n_without_runs != 0 and takes_no_runs(dp, packet.next_hop):
        how |= <uint16_t> ALONE
    if vnet.gso_type == VNET_GSO_NONE:
        # First what is wrong by itself, then what depends on a path that may not be known yet; below likewise.
        if vnet.flags & VNET_NEEDS_CSUM:
            reason = complete_checksum(vnet, packet, least_transport_start(family, packet))
            if reason != KEEP:
                return reason
        if exceeds_path_mtu(dp, packet.next_hop, packet.len):
            if not may_be_fragmented(family, packet):
                if not is_probe(packet):
                    return TOO_BIG  # RFC 1191 section 5, RFC 8200 section 5
            elif probed_mtu(dp, packet.next_hop) == 0:
                how |= <uint16_t> TO_FRAGMENT
            else:
                return queue_fragments(dp, packet, how, path_mtu(dp, packet.next_hop))
        memcpy(place_to_send(dp, kind, packet.len, packet.next_hop), packet.data, packet.len)
        send_later(dp, kind, packet.len, packet.next_hop, how)
        return KEEP
    reason = plan_split(&split, family, vnet, packet, UDP_PAYLOAD_MAX_BYTES - heading_bytes(kind))
    if reason != KEEP:
        return reason
    if exceeds_path_mtu(dp, packet.next_hop, split.header_len + split.segment_payload):
        if not may_be_fragmented(family, packet):
            return TOO_BIG
        if probed_mtu(dp, packet.next_hop) != 0:
            queue_segments_in_fragments(dp, packet, &split, how)
            return KEEP
        how |= <uint16_t> TO_FRAGMENT
    for i in range(split.n):
        place = place_to_send(dp, kind, split.header_len + split.segment_payload, packet.next_hop)
        n_bytes = write_segment(&split, packet, i, place)
        send_later(dp, kind, n_bytes, packet.next_hop, how)
    return KEEP


cdef inline void forward(
    Datapath *dp, Encapsulation kind, Family family, const VirtioNetHeader *vnet, Packet *packet, bint captures
) noexcept nogil:
    """Steps 2 to 5 for one packet: it is queued, or it is dropped."""
    cdef Original original
    cdef DropReason reason
    if captures:
        save_original(&original, packet, ip_header_bytes(family))
    reason = route(dp, kind, family, packet)
    if reason == KEEP:
        reason = enqueue(dp, kind, family, vnet, packet)
    if captures:
        capture_read(dp, &original, vnet.gso_size if vnet.gso_type != VNET_GSO_NONE else 0, packet, reason)
    if reason != KEEP:
        name_outer_end(dp, family, packet)
        count_drops(&dp.out_counters, reason, 1, packet)
        answer_sender(dp, packet, reason)


cdef inline bint claims_ipv6(const Packet *packet) noexcept nogil:
    return packet.len != 0 and packet.data[0] >> 4 == 6


cdef inline uint32_t move_out(
    Datapath *reader, Datapath *dp4, Datapath *dp6, Encapsulation kind, bint captures
) noexcept nogil:
    """Move a batch from the TUN that `reader` has; a family that is not carried is NULL, and costs nothing."""
    cdef VirtioNetHeader vnet
    cdef Packet packet
    cdef uint32_t n_packets = 0
    cdef uint32_t n_bytes = 0
    if dp4 != NULL:
        begin_batch(&dp4.out_counters)
    if dp6 != NULL:
        begin_batch(&dp6.out_counters)
    while not turn_is_over(n_packets, n_bytes) and tun_read(reader, &vnet, &packet):
        n_packets += 1
        n_bytes += packet.len
        if dp6 != NULL and (dp4 == NULL or claims_ipv6(&packet)):
            forward(dp6, kind, FAMILY_6, &vnet, &packet, captures)
        else:
            forward(dp4, kind, FAMILY_4, &vnet, &packet, captures)
    if dp4 != NULL:
        transmit(dp4)
    if dp6 != NULL:
        transmit(dp6)
    return n_packets


cdef inline uint32_t move_out_alone(Datapath *dp, Encapsulation kind, bint captures) noexcept nogil:
    if dp.family == FAMILY_6:
        return move_out(dp, NULL, dp, kind, captures)
    return move_out(dp, dp, NULL, kind, captures)


cdef inline uint32_t move_out_of(Datapath *dp, bint captures) noexcept nogil:
    if dp.encapsulation == ENCAP_UDP and dp.other != NULL:
        return move_out(dp, dp, dp.other, ENCAP_UDP, captures)      # IPv4's is the one that reads
    if dp.encapsulation == ENCAP_UDP:
        return move_out_alone(dp, ENCAP_UDP, captures)
    if dp.encapsulation == ENCAP_VXLAN:
        return move_out_alone(dp, ENCAP_VXLAN, captures)
    return move_out(dp, dp, NULL, ENCAP_IPIP, captures)


cdef uint32_t outbound_batch(Datapath *dp) noexcept nogil:
    return move_out_of(dp, False)


cdef uint32_t outbound_batch_captured(Datapath *dp) noexcept nogil:
    return move_out_of(dp, True)


cdef DropReason try_route(const Datapath *dp, Packet *packet) noexcept nogil:
    return route(dp, dp.encapsulation, dp.family, packet)


cdef DropReason try_enqueue(Datapath *dp, const VirtioNetHeader *vnet, Packet *packet) noexcept nogil:
    return enqueue(dp, dp.encapsulation, dp.family, vnet, packet)
