"""The packet path's own stages on packets in memory: inline functions inlined, the others called where they live.

A bundle is packets of one size back to back, as a receive with UDP_GRO brings them. Each function returns how many
packets it handled, and raises ValueError where a stage would have dropped one: then it measured something else.
"""

from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from flannel_udp._fastpath.coalesce cimport (
    JOINED_HEADER_MAX,
    WriteQueue,
    write_joined_headers,
    write_queue_add,
    write_queue_clear,
)
from flannel_udp._fastpath.drops cimport KEEP
from flannel_udp._fastpath.ecn cimport DSCP_INHERIT, OuterTos, outer_tos, outer_tos_of
from flannel_udp._fastpath.family cimport FAMILY_4
from flannel_udp._fastpath.ipv4 cimport decrement_ttl, is_unicast, parse
from flannel_udp._fastpath.packet cimport Packet
from flannel_udp._fastpath.routes cimport FIRST_PEER, RouteTable, lookup
from flannel_udp._fastpath.rung cimport rung_set
from flannel_udp._fastpath.sendqueue cimport (
    RUN_PACKETS_MAX,
    SEND_ARENA_BYTES,
    SendQueue,
    queue_clear,
    queue_commit,
    queue_end,
)
from flannel_udp._fastpath.split cimport Split, complete_checksum, plan_split, write_segment
from flannel_udp._fastpath.turn cimport TURN_BYTES
from flannel_udp._fastpath.wire cimport (
    IPV4_HEADER_BYTES,
    IPV4_MAX_BYTES,
    VNET_GSO_TCPV4,
    VNET_GSO_UDP_L4,
    VNET_NEEDS_CSUM,
    Ipv4Header,
    VirtioNetHeader,
    ntohl,
)


cdef inline void view(Packet *packet, uint8_t *data, uint32_t n_bytes) noexcept nogil:
    memset(packet, 0, sizeof(Packet))
    packet.data = data
    packet.len = n_bytes
    packet.next_hop = FIRST_PEER


def route(uint8_t[::1] bundle not None, RouteTable table not None, uint32_t size, uint32_t rounds) -> int:
    """Check the header, look the destination up, decrement the TTL: at most 254 rounds wear a TTL of 255 out."""
    cdef uint32_t n = <uint32_t> bundle.shape[0] // size
    cdef uint32_t handled = 0
    cdef uint32_t i
    cdef Packet packet
    cdef Ipv4Header *ip = NULL
    with nogil:
        for _ in range(rounds):
            for i in range(n):
                view(&packet, &bundle[i * size], size)
                if parse(&packet, &ip) != KEEP or not is_unicast(ntohl(ip.dst)):
                    break
                packet.next_hop = lookup(&table.table, ntohl(ip.dst))
                if packet.next_hop < FIRST_PEER or not decrement_ttl(ip):
                    break
                handled += 1
    if handled != n * rounds:
        raise ValueError("a packet was dropped")
    return handled


def queue(uint8_t[::1] bundle not None, uint32_t size, uint32_t rounds) -> int:
    """Copy each packet into the send queue, in runs for UDP_SEGMENT."""
    cdef uint32_t n = <uint32_t> bundle.shape[0] // size
    cdef uint32_t i
    cdef OuterTos tos = outer_tos_of(DSCP_INHERIT)
    cdef SendQueue *waiting = <SendQueue *> calloc(1, sizeof(SendQueue))
    if waiting == NULL:
        raise MemoryError
    waiting.arena = <uint8_t *> calloc(1, SEND_ARENA_BYTES)
    if waiting.arena == NULL:
        free(waiting)
        raise MemoryError
    waiting.packets_max = RUN_PACKETS_MAX
    with nogil:
        for _ in range(rounds):
            for i in range(n):
                memcpy(queue_end(waiting), &bundle[i * size], size)
                queue_commit(waiting, size, FIRST_PEER, outer_tos((<Ipv4Header *> &bundle[i * size]).tos, tos))
            if waiting.used >= TURN_BYTES:
                queue_clear(waiting)
    free(waiting.arena)
    free(waiting)
    return n * rounds


def complete(uint8_t[::1] packet_bytes not None, uint32_t checksum_offset, uint32_t rounds) -> int:
    """Complete the partial checksum of one packet. What the field holds from the second round on costs the same."""
    cdef VirtioNetHeader vnet
    cdef Packet packet
    cdef uint32_t handled = 0
    memset(&vnet, 0, sizeof(vnet))
    vnet.flags = VNET_NEEDS_CSUM
    vnet.csum_start = IPV4_HEADER_BYTES
    vnet.csum_offset = <unsigned short> checksum_offset
    view(&packet, &packet_bytes[0], <uint32_t> packet_bytes.shape[0])
    with nogil:
        for _ in range(rounds):
            handled += complete_checksum(&vnet, &packet, IPV4_HEADER_BYTES) == KEEP
    if handled != rounds:
        raise ValueError("a packet was dropped")
    return handled


def split(
    uint8_t[::1] whole not None, bint tcp, uint32_t gso_size, uint8_t[::1] bundle not None, uint32_t rounds
) -> int:
    """Split a super-packet into `bundle`, which has room for all segments."""
    cdef VirtioNetHeader vnet
    cdef Packet packet
    cdef Split plan
    cdef uint32_t handled = 0
    cdef uint32_t offset, i
    memset(&vnet, 0, sizeof(vnet))
    vnet.flags = VNET_NEEDS_CSUM
    vnet.gso_type = VNET_GSO_TCPV4 if tcp else VNET_GSO_UDP_L4
    vnet.gso_size = <unsigned short> gso_size
    view(&packet, &whole[0], <uint32_t> whole.shape[0])
    if plan_split(&plan, FAMILY_4, &vnet, &packet, IPV4_MAX_BYTES) != KEEP:
        raise ValueError("the super-packet was dropped")
    if plan.n * (plan.header_len + plan.segment_payload) > <size_t> bundle.shape[0]:
        raise ValueError("the bundle is too small")
    with nogil:
        for _ in range(rounds):
            plan_split(&plan, FAMILY_4, &vnet, &packet, IPV4_MAX_BYTES)
            offset = 0
            for i in range(plan.n):
                offset += write_segment(&plan, &packet, i, &bundle[offset])
            handled += plan.n
    return handled


def join(uint8_t[::1] bundle not None, uint32_t size, uint32_t rounds) -> int:
    """Join the segments of one flow to one super-packet, every checksum verified."""
    cdef uint32_t n = <uint32_t> bundle.shape[0] // size
    cdef uint32_t joined = 0
    cdef uint32_t i
    cdef uint8_t headers[JOINED_HEADER_MAX]
    cdef VirtioNetHeader vnet
    cdef Packet packet
    cdef WriteQueue *writes = <WriteQueue *> calloc(1, sizeof(WriteQueue))
    if writes == NULL:
        raise MemoryError
    rung_set(&writes.join_tcp, True)
    rung_set(&writes.join_udp, True)
    with nogil:
        for _ in range(rounds):
            write_queue_clear(writes)
            for i in range(n):
                view(&packet, &bundle[i * size], size)
                write_queue_add(writes, &packet)
            write_joined_headers(writes, &writes.writes[0], headers, &vnet)
            joined += writes.writes[0].n
    free(writes)
    if joined != n * rounds:
        raise ValueError("the packets were not joined to one")
    return joined
