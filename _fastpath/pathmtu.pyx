"""Learn the path MTU to a peer, and keep what the agent's probes found."""

from libc.stdint cimport uint8_t

from flannel_udp._fastpath.atomics cimport store_word
from flannel_udp._fastpath.clock cimport now_ns
from flannel_udp._fastpath.datapath cimport PEER_CHUNK_BITS, PEER_CHUNKS_MAX
from flannel_udp._fastpath.encapsulation cimport outer_bytes
from flannel_udp._fastpath.family cimport FAMILY_6
from flannel_udp._fastpath.ipv4 cimport header_len
from flannel_udp._fastpath.outer_address cimport peer_tag, tag_of6
from flannel_udp._fastpath.packet cimport packet_at
from flannel_udp._fastpath.sysio cimport query_path_mtu
from flannel_udp._fastpath.wire cimport (
    IPV4_MAX_BYTES,
    IPV6_HEADER_BYTES,
    IPV6_MTU_MIN,
    PROTOCOL_ICMP,
    PROTOCOL_ICMP6,
    Ipv4Header,
    Ipv6Header,
    htonl,
)

cdef enum:
    IPV4_MTU_MIN = 68           # RFC 791 section 3.1: every IPv4 link carries that much
    KEPT_S = 10
    ICMP_ID_OFFSET = 4          # RFC 792, echo: type, code, checksum, identifier


cdef bint still_exceeds(Datapath *dp, uint32_t peer, uint32_t n_bytes) noexcept nogil:
    cdef PeerState *state = state_of(dp, peer)
    if (
        state.learned_of != peer_tag(dp, peer)
        or state.learned_epoch != load_word(&dp.path_epoch)
        or now_ns() >= state.learned_until_ns
    ):
        state.learned_mtu = 0
    keep_smaller(dp, peer)
    return 0 < state.inner_mtu < n_bytes


cdef void keep_smaller(Datapath *dp, uint32_t peer) noexcept nogil:
    """Let the smaller one of the two limits count."""
    cdef PeerState *state = state_of(dp, peer)
    cdef uint32_t probed
    store_word(&state.inner_mtu, state.learned_mtu)
    # Asked only now: `set_probed_mtu` stores in the other order, so that one of the two sees the other's value.
    probed = probed_mtu(dp, peer)
    if probed != 0 and (state.learned_mtu == 0 or probed < state.learned_mtu):
        store_word(&state.inner_mtu, probed)


cdef bint learn_path_mtu(Datapath *dp, uint32_t peer) noexcept nogil:
    cdef uint64_t epoch = load_word(&dp.path_epoch)     # before the question: what changes later makes the answer old
    cdef uint32_t outer_mtu = query_path_mtu(dp, peer)
    if outer_mtu == 0:
        return False
    keep_path_mtu(dp, peer, outer_mtu, epoch)
    return True


cdef void keep_path_mtu(Datapath *dp, uint32_t peer, uint32_t outer_mtu, uint64_t epoch) noexcept nogil:
    cdef PeerState *state = state_of(dp, peer)
    cdef uint32_t overhead = outer_bytes(dp.encapsulation, dp.family)
    # An IPv6 packet that no link may refuse is never told to be shorter: its datagram is fragmented, see `transmit`.
    cdef uint32_t least = <uint32_t> (IPV6_MTU_MIN if dp.family == FAMILY_6 else IPV4_MTU_MIN)
    outer_mtu = min(outer_mtu, <uint32_t> IPV4_MAX_BYTES)   # loopback says 65,536, a byte more than an IPv4 packet has
    state.learned_of = peer_tag(dp, peer)
    state.learned_mtu = outer_mtu - overhead if outer_mtu > least + overhead else least
    state.learned_epoch = epoch
    state.learned_until_ns = now_ns() + <uint64_t> KEPT_S * 1000000000
    keep_smaller(dp, peer)


cdef uint32_t probed_mtu(const Datapath *dp, uint32_t peer) noexcept nogil:
    cdef uint64_t probed = load_word(&state_of(<Datapath *> dp, peer).probed_mtu)
    return <uint32_t> probed if probed >> 32 == peer_tag(dp, peer) else 0


cdef void set_probed_mtu(PeerState *state, uint32_t tag, uint32_t n_bytes) noexcept nogil:
    cdef uint32_t former = <uint32_t> load_word(&state.probed_mtu)
    cdef uint64_t in_force
    store_word(&state.probed_mtu, <uint64_t> tag << 32 | n_bytes if n_bytes else 0)
    in_force = load_word(&state.inner_mtu)
    if in_force == 0 or in_force == former or 0 < n_bytes < in_force:
        store_word(&state.inner_mtu, n_bytes)


cdef int limit_path(Datapath *dp, uint32_t peer, object address, uint32_t n_bytes) except -1:
    cdef bytes packed
    cdef uint32_t tag
    if dp.family == FAMILY_6:
        packed = address.to_bytes(16, "big")
        tag = tag_of6(<const uint8_t *> <const char *> packed)
    else:
        tag = htonl(address)
    if peer >> PEER_CHUNK_BITS < PEER_CHUNKS_MAX and dp.peer_chunks[peer >> PEER_CHUNK_BITS] != NULL:
        set_probed_mtu(state_of(dp, peer), tag, n_bytes)
    return 0


cdef bint is_probe(const Packet *packet) noexcept nogil:
    cdef const Ipv4Header *ip = <const Ipv4Header *> packet.data
    if ip.version_ihl >> 4 == 6:
        return (<const Ipv6Header *> ip).next_header == PROTOCOL_ICMP6 and has_probe_id(packet, IPV6_HEADER_BYTES)
    return ip.protocol == PROTOCOL_ICMP and has_probe_id(packet, header_len(ip))


cdef inline bint has_probe_id(const Packet *packet, uint32_t offset) noexcept nogil:
    """Whether an echo of either family's ICMP, from `offset` on, has our identifier (RFC 792, RFC 4443 section 4)."""
    cdef const uint8_t *icmp = packet_at(packet, offset, ICMP_ID_OFFSET + 2)
    return icmp != NULL and (<uint32_t> icmp[ICMP_ID_OFFSET] << 8 | icmp[ICMP_ID_OFFSET + 1]) == <uint32_t> PROBE_ID
