"""Which peers' routes take no runs (UDP_SEGMENT): packets to them leave one by one, a run is tried at times.

The kernel answers EIO where a route cannot have datagrams cut: over a device without checksum offload (before Linux
6.11), or through IPsec. Other peers' routes are not concerned.
"""

from libc.stdint cimport uint32_t, uint64_t

from flannel_udp._fastpath.clock cimport now_ns
from flannel_udp._fastpath.datapath cimport PEER_CHUNK, PEER_CHUNKS_MAX, Datapath, PeerState, state_of
from flannel_udp._fastpath.family cimport FAMILY_6
from flannel_udp._fastpath.outer_address cimport peer_tag
from flannel_udp._fastpath.rung cimport RUNG_RETRY_S


cdef inline void note_run_refused(Datapath *dp, uint32_t peer) noexcept nogil:
    cdef PeerState *state = state_of(dp, peer)
    if state.run_retry_ns == 0:
        dp.n_without_runs += 1
    state.run_retry_ns = now_ns() + <uint64_t> RUNG_RETRY_S * 1000000000
    state.run_refused_by = peer_tag(dp, peer)


cdef inline void note_run_taken(Datapath *dp, PeerState *state) noexcept nogil:
    if state.run_retry_ns != 0:
        state.run_retry_ns = 0
        dp.n_without_runs -= 1


cdef inline bint takes_no_runs(Datapath *dp, uint32_t peer) noexcept nogil:
    """Whether a run to the peer was refused, and is not due again."""
    cdef const PeerState *state = state_of(dp, peer)
    return (
        state.run_retry_ns != 0
        and state.run_refused_by == peer_tag(dp, peer)     # else the index was another peer's then
        and now_ns() < state.run_retry_ns
    )


cdef inline bint run_was_refused(Datapath *dp, uint32_t peer) noexcept nogil:
    """Whether a run to the peer that has this index in the table in force was refused when it was tried last."""
    cdef uint32_t n_hops = dp.table6.n_hops if dp.family == FAMILY_6 else dp.table.n_hops
    return peer < n_hops and state_of(dp, peer).run_refused_by == peer_tag(dp, peer)


cdef inline void forget_former_peers(Datapath *dp) noexcept nogil:
    """Forget what was refused for peers that the table in force has not, or under another index.

    Belongs to the thread that polls. Stops at the last one that there is: of most tables few peers are looked at.
    """
    cdef uint32_t n_left = dp.n_without_runs
    cdef uint32_t peer = 0
    while n_left != 0 and peer < <uint32_t> PEER_CHUNK * PEER_CHUNKS_MAX:
        if dp.peer_chunks[peer // PEER_CHUNK] == NULL:
            peer += PEER_CHUNK
            continue
        if state_of(dp, peer).run_retry_ns != 0:
            n_left -= 1
            if not run_was_refused(dp, peer):
                note_run_taken(dp, state_of(dp, peer))
        peer += 1


cdef inline void forget_refused_runs(Datapath *dp) noexcept nogil:
    """Forget all of it. The thread that polls must have stopped."""
    cdef uint32_t chunk, i
    for chunk in range(<uint32_t> PEER_CHUNKS_MAX):
        if dp.peer_chunks[chunk] != NULL:
            for i in range(<uint32_t> PEER_CHUNK):
                dp.peer_chunks[chunk][i].run_retry_ns = 0
    dp.n_without_runs = 0
