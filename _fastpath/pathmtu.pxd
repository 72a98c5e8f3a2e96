"""How large an inner packet may be on the way to a peer, once the underlay said that the interface's MTU is too much.

The socket sends with "don't fragment" (IP_PMTUDISC_DO): the kernel keeps what routers tell (RFC 1191) and answers
EMSGSIZE. The limit is asked from it then, kept with the peer for ten minutes from then on, and told to senders by ICMP.
The kernel's own entry may end sooner or later: it began before we asked, and net.ipv4.route.mtu_expires may be changed.
What may be fragmented is sent without the bit.
"""

from libc.stdint cimport uint32_t

from flannel_udp._fastpath.clock cimport now_ns
from flannel_udp._fastpath.datapath cimport Datapath, PeerState, state_of
from flannel_udp._fastpath.encap_udp cimport outer_address


cdef inline bint exceeds_path_mtu(Datapath *dp, uint32_t peer, uint32_t n_bytes) noexcept nogil:
    """Whether an inner packet of `n_bytes` is larger than the limit that is kept for the peer, be it stale or not."""
    cdef const PeerState *state = state_of(dp, peer)
    return state.inner_mtu != 0 and n_bytes > state.inner_mtu


cdef inline bint forget_stale_path_mtu(Datapath *dp, uint32_t peer) noexcept nogil:
    """Forget a limit that is the index's former peer's, or so old that the path may carry more; return whether."""
    cdef PeerState *state = state_of(dp, peer)
    if state.inner_mtu_of == outer_address(dp.table, peer) and now_ns() < state.inner_mtu_until_ns:
        return False
    state.inner_mtu = 0
    return True

# Ask the kernel for the path MTU to the peer and keep it; False where it does not tell.
cdef bint learn_path_mtu(Datapath *dp, uint32_t peer) noexcept nogil
