"""What would become of a packet: the packet path's own decisions about it, made on a copy of what it goes by.

Nothing is sent, counted, answered or learnt. The kernel is asked one thing, its path MTU to the peer, which sends
nothing either. The table is the engine's in force: nobody writes it as long as an engine has it, and it stays in force
as the caller is the thread that publishes. What the data thread writes meanwhile (counters, what it learns of a path)
may be half new in the copy: no decision needs two of these to fit.
"""

from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from flannel_udp._fastpath.datapath cimport (
    PEER_CHUNK,
    PEER_CHUNK_BITS,
    Datapath,
    PeerState,
    lease_expired,
)
from flannel_udp._fastpath.drops cimport KEEP, LEASE_EXPIRED, TOO_BIG, TTL_EXPIRED, DropReason
from flannel_udp._fastpath.encapsulation cimport heading_bytes, outer_bytes
from flannel_udp._fastpath.family cimport FAMILY_6
from flannel_udp._fastpath.icmp cimport ICMP_ERROR_MAX_BYTES, find_answerable, write_icmp_error
from flannel_udp._fastpath.icmp6 cimport ICMP6_ERROR_MAX_BYTES, find_answerable6, write_icmp6_error
from flannel_udp._fastpath.inbound cimport try_accept
from flannel_udp._fastpath.outbound cimport try_enqueue, try_route
from flannel_udp._fastpath.outer_address cimport outer_address, outer_address6
from flannel_udp._fastpath.packet cimport Packet
from flannel_udp._fastpath.pathmtu cimport learn_path_mtu, path_mtu, probed_mtu
from flannel_udp._fastpath.refusal cimport classify_send
from flannel_udp._fastpath.routes cimport RouteTable
from flannel_udp._fastpath.routes6 cimport RouteTable6
from flannel_udp._fastpath.sendqueue cimport (
    OUTER_TOS,
    RUN_PACKETS_MAX,
    SEND_ARENA_BYTES,
    TO_FRAGMENT,
    Run,
    queue_clear,
)
from flannel_udp._fastpath.sysio cimport query_path_mtu
from flannel_udp._fastpath.table cimport FIRST_PEER
from flannel_udp._fastpath.transmit cimport lane_of
from flannel_udp._fastpath.wire cimport IPV6_MTU_MIN, Ipv4Header, Ipv6Header, VirtioNetHeader, be32

from flannel_udp._fastpath.drops import DropReason as Reasons

cdef enum:
    PACKET_MAX_BYTES = 65575    # the longest IPv6 packet without a jumbo option: 40 bytes and 65,535 (RFC 8200)


cdef class Trial:
    """The copy: what packets are decided by is the engine's, what they would leave behind stays in here."""

    cdef Datapath dp
    cdef uint8_t *arena
    cdef PeerState *peers           # the states of the peers around the one that is asked about

    def __dealloc__(self):
        free(self.arena)
        free(self.peers)

    cdef int copy(self, const Datapath *dp, table) except -1:
        memcpy(&self.dp, dp, sizeof(Datapath))
        self.arena = <uint8_t *> malloc(<size_t> SEND_ARENA_BYTES)
        if self.arena == NULL:
            raise MemoryError
        self.dp.ring = NULL                                 # nobody captures what is only tried
        self.dp.send_queue.arena = self.arena
        # So that it is never full, when it would be sent: fragments of any packet are few runs, also to a peer that
        # takes none (see `segmenting`), for whom each would be one of its own.
        self.dp.send_queue.packets_max = RUN_PACKETS_MAX
        self.dp.n_without_runs = 0
        queue_clear(&self.dp.send_queue)
        if self.dp.family == FAMILY_6:
            self.dp.table6 = &(<RouteTable6?> table).table
        else:
            self.dp.table = &(<RouteTable?> table).table
        return 0

    cdef int copy_state_of(self, uint32_t peer) except -1:
        """Have a copy of what is known of the path to a peer: to ask it is to forget what is too old."""
        cdef uint32_t chunk = peer >> PEER_CHUNK_BITS
        self.peers = <PeerState *> calloc(PEER_CHUNK, sizeof(PeerState))
        if self.peers == NULL:
            raise MemoryError
        memcpy(self.peers, self.dp.peer_chunks[chunk], PEER_CHUNK * sizeof(PeerState))
        self.dp.peer_chunks[chunk] = self.peers
        return 0

    cdef DropReason enqueue(self, Packet *packet, uint32_t kernel_mtu):
        """Queue the packet as it would be sent; `kernel_mtu` is what the kernel says that the path carries, or 0."""
        cdef VirtioNetHeader vnet
        cdef DropReason reason
        memset(&vnet, 0, sizeof(vnet))
        reason = try_enqueue(&self.dp, &vnet, packet)
        if reason != KEEP:
            return reason
        if lease_expired(&self.dp):
            return LEASE_EXPIRED
        if self.refused_for_size(kernel_mtu) == NULL:
            return KEEP
        # The kernel would refuse it (EMSGSIZE); as `transmit` does then the path is learnt, and decides.
        learn_path_mtu(&self.dp, packet.next_hop)
        queue_clear(&self.dp.send_queue)
        reason = try_enqueue(&self.dp, &vnet, packet)
        if reason == KEEP and self.refused_for_size(kernel_mtu) != NULL:
            if self.dp.family != FAMILY_6 or packet.len > IPV6_MTU_MIN:
                return TOO_BIG              # a probe of the agent's own
            self.refused_for_size(kernel_mtu).how |= TO_FRAGMENT
        return reason

    cdef Run *refused_for_size(self, uint32_t kernel_mtu) noexcept:
        """Return a run of which the kernel would refuse the packets, NULL for none."""
        cdef uint32_t more = outer_bytes(self.dp.encapsulation, self.dp.family) - heading_bytes(self.dp.encapsulation)
        cdef Run *run
        cdef uint32_t i
        for i in range(self.dp.send_queue.n):
            run = &self.dp.send_queue.runs[i]
            if kernel_mtu != 0 and not run.how & TO_FRAGMENT and run.segment_len + more > kernel_mtu:
                return run
        return NULL

    cdef list sent(self):
        """Return what is queued: each datagram's payload, outer TOS, whether routers may cut it, and its lane."""
        cdef const Run *run
        cdef uint32_t i, at
        found = []
        for i in range(self.dp.send_queue.n):
            run = &self.dp.send_queue.runs[i]
            for at in range(0, run.n_bytes, run.segment_len):
                payload = (<const char *> run.data)[at:min(at + run.segment_len, run.n_bytes)]
                found.append((payload, run.how & OUTER_TOS, bool(run.how & TO_FRAGMENT), lane_of(&self.dp, run)))
        return found

    cdef bytes peer(self, uint32_t next_hop):
        """Return the underlay address of a next hop, empty for what is no peer."""
        cdef be32 address
        if next_hop < FIRST_PEER:
            return b""
        if self.dp.family == FAMILY_6:
            return (<const char *> outer_address6(self.dp.table6, next_hop))[:16]
        address = outer_address(self.dp.table, next_hop)
        return (<const char *> &address)[:4]

    cdef bytes answer(self, const Packet *packet, DropReason reason):
        """Return the ICMP error that the sender of a dropped packet would get, empty for none."""
        cdef uint32_t mtu = 0
        if self.dp.icmp_fd < 0:
            return b""
        if reason == TOO_BIG:
            mtu = path_mtu(&self.dp, packet.next_hop)
        return self.answer6(packet, reason, mtu) if self.dp.family == FAMILY_6 else self.answer4(packet, reason, mtu)

    cdef bytes answer4(self, const Packet *packet, DropReason reason, uint32_t mtu):
        cdef uint8_t[ICMP_ERROR_MAX_BYTES] message
        cdef const Ipv4Header *original = find_answerable(packet, reason)
        cdef uint32_t n
        if original == NULL or self.dp.table.own_addr == 0:
            return b""
        n = write_icmp_error(message, packet, original, reason, mtu)
        return (<const char *> message)[:n]

    cdef bytes answer6(self, const Packet *packet, DropReason reason, uint32_t mtu):
        cdef uint8_t[ICMP6_ERROR_MAX_BYTES] message
        cdef const Ipv6Header *original = find_answerable6(packet, reason)
        cdef const uint8_t *own = <const uint8_t *> self.dp.table6.own_addr
        cdef uint32_t n
        if original == NULL or not any(own[:16]):
            return b""
        n = write_icmp6_error(message, packet, original, reason, own, mtu)
        return (<const char *> message)[:n]


cdef int view(Packet *packet, bytearray data) except -1:
    if len(data) > PACKET_MAX_BYTES:
        raise ValueError("longer than a packet can be")
    memset(packet, 0, sizeof(Packet))
    packet.data = <uint8_t *> <char *> data
    packet.len = <uint32_t> len(data)
    return 0


cdef str name_of(DropReason reason):
    return "" if reason == KEEP else Reasons(<int> reason).name.lower()


cdef bytes bytes_of(const Packet *packet):
    return (<const char *> packet.data)[:packet.len]


cdef tuple try_packet(const Datapath *dp, object table, bytes packet):
    cdef Trial trial = Trial()
    cdef Packet inner
    cdef DropReason reason
    cdef uint32_t kernel_mtu = 0
    cdef uint32_t probed = 0
    cdef uint32_t limit = 0
    data = bytearray(packet)
    view(&inner, data)
    trial.copy(dp, table)
    reason = try_route(&trial.dp, &inner)
    if inner.next_hop >= FIRST_PEER:
        trial.copy_state_of(inner.next_hop)
        kernel_mtu = query_path_mtu(&trial.dp, inner.next_hop)
        if reason == KEEP:
            reason = trial.enqueue(&inner, kernel_mtu)
        probed, limit = probed_mtu(&trial.dp, inner.next_hop), path_mtu(&trial.dp, inner.next_hop)
    return (
        name_of(reason),
        bytes_of(&inner),
        trial.answer(&inner, reason) if reason != KEEP and reason != LEASE_EXPIRED else b"",
        trial.peer(inner.next_hop),
        trial.sent() if reason == KEEP else [],
        (kernel_mtu, probed, limit),
    )


cdef tuple try_datagram(const Datapath *dp, object table, bytes datagram, bytes sender, int tos):
    cdef Trial trial = Trial()
    cdef Packet inner
    cdef DropReason reason
    if len(sender) != (16 if dp.family == FAMILY_6 else 4):
        raise ValueError("the sender's address is of another IP version")
    data = bytearray(datagram)
    view(&inner, data)
    trial.copy(dp, table)
    if dp.family == FAMILY_6:
        inner.outer_addr6 = <const uint8_t *> <const char *> sender
    else:
        memcpy(&inner.outer_addr, <const char *> sender, 4)
    inner.outer_tos = <uint8_t> tos
    reason = try_accept(&trial.dp, &inner)
    return (
        name_of(reason),
        bytes_of(&inner),
        trial.answer(&inner, reason) if reason == TTL_EXPIRED else b"",
        bool(inner.partial or inner.gso_size),
    )


def refusal(int error) -> str:
    """Return as what a packet counts that the kernel refuses to send with this errno."""
    return name_of(classify_send(error, 1).reason)
