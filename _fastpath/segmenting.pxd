"""Which peers' routes take no runs (UDP_SEGMENT): packets to them leave one by one, a run is tried at times.

The kernel answers EIO where a route cannot have datagrams cut: over a device without checksum offload (before Linux
6.11), or through IPsec. Other peers' routes are not concerned.
"""

from libc.stdint cimport uint32_t, uint64_t

from flannel_udp._fastpath.clock cimport now_ns
from flannel_udp._fastpath.datapath cimport Datapath, PeerState, state_of
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
