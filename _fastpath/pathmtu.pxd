"""How large an inner packet may be on the way to a peer, once the underlay said that the interface's MTU is too much.

The socket sends with "don't fragment" (IP_PMTUDISC_DO): the kernel keeps what routers tell (RFC 1191) and answers
EMSGSIZE. The limit is asked from it then, kept with the peer and told to senders by ICMP. What may be fragmented and is
larger is sent without the bit.

The kernel's own entry ends when it will: after ten minutes (net.ipv4.route.mtu_expires), with a change of the routes or
of an interface's MTU. So ours is asked anew every few seconds while packets exceed it, which costs the one packet that
is sent to meet EMSGSIZE again, and at once after `Engine.forget_path_mtus`.
"""

from libc.stdint cimport uint32_t

from flannel_udp._fastpath.atomics cimport load_word
from flannel_udp._fastpath.clock cimport now_ns
from flannel_udp._fastpath.datapath cimport Datapath, PeerState, state_of
from flannel_udp._fastpath.encap_udp cimport outer_address


cdef inline bint exceeds_path_mtu(Datapath *dp, uint32_t peer, uint32_t n_bytes) noexcept nogil:
    """Whether an inner packet of `n_bytes` is larger than the path to the peer is known to carry."""
    cdef const PeerState *state = state_of(dp, peer)
    return state.inner_mtu != 0 and n_bytes > state.inner_mtu and not forget_stale_path_mtu(dp, peer)


cdef inline bint forget_stale_path_mtu(Datapath *dp, uint32_t peer) noexcept nogil:
    """Forget a limit that is the index's former peer's, or that may not be so any more; return whether."""
    cdef PeerState *state = state_of(dp, peer)
    if (
        state.inner_mtu_of == outer_address(dp.table, peer)
        and state.inner_mtu_epoch == load_word(&dp.path_epoch)
        and now_ns() < state.inner_mtu_until_ns
    ):
        return False
    state.inner_mtu = 0
    return True

# Ask the kernel for the path MTU to the peer and keep it; False where it does not tell.
cdef bint learn_path_mtu(Datapath *dp, uint32_t peer) noexcept nogil
