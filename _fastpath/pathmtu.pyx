"""Learn the path MTU to a peer."""

from libc.stdint cimport uint64_t

from flannel_udp._fastpath.encap_udp cimport OUTER_BYTES
from flannel_udp._fastpath.sysio cimport query_path_mtu
from flannel_udp._fastpath.wire cimport IPV4_MAX_BYTES

cdef enum:
    INNER_MTU_MIN = 68          # RFC 791 section 3.1: every IPv4 link carries that much
    KEPT_S = 10


cdef bint learn_path_mtu(Datapath *dp, uint32_t peer) noexcept nogil:
    cdef PeerState *state = state_of(dp, peer)
    cdef uint64_t epoch = load_word(&dp.path_epoch)     # before the question: what changes later makes the answer old
    # The loopback interface says 65,536, a byte more than an IPv4 packet has.
    cdef uint32_t outer_mtu = min(query_path_mtu(dp, outer_address(dp.table, peer)), <uint32_t> IPV4_MAX_BYTES)
    if outer_mtu == 0:
        return False
    state.inner_mtu_of = outer_address(dp.table, peer)
    state.inner_mtu = outer_mtu - OUTER_BYTES if outer_mtu > INNER_MTU_MIN + OUTER_BYTES else INNER_MTU_MIN
    state.inner_mtu_epoch = epoch
    state.inner_mtu_until_ns = now_ns() + <uint64_t> KEPT_S * 1000000000
    return True
