"""The peers of a table of either family: room for them, and the hash of their underlay addresses."""

from libc.stdint cimport uint32_t, uint64_t

from flannel_udp._fastpath.route_rows cimport AnyRoute
from flannel_udp._fastpath.table cimport Table
from flannel_udp._fastpath.table6 cimport Table6

ctypedef fused AnyTable:
    Table
    Table6

# Whether a peer has no MAC, or one of more than 48 bits: of `n` next hops, each with an address of `width` bytes, all
# zero where it is no peer's.
cdef bint lacks_macs(const uint64_t *macs, const void *addresses, size_t width, size_t n) noexcept nogil

# Whether all these routes lead to us or to a peer.
cdef bint lead_to_peers(const AnyTable *table, const AnyRoute *rows, size_t n) noexcept nogil

# Have room for next hops below `n_hops`, with MACs or without; those that are new are nobody's. Return 0, or -1 without
# memory.
cdef int make_room_for_peers(AnyTable *table, uint32_t n_hops, bint with_macs) noexcept nogil

# Build the hash anew, unless it has slots for all next hops; return 0, or -1 without memory.
cdef int index_peers(AnyTable *table) noexcept nogil
# Take the peer with this next hop into the hash, or out of it. Nothing happens where no peer has it.
cdef void remember_peer(AnyTable *table, uint32_t hop) noexcept nogil
cdef void forget_peer(AnyTable *table, uint32_t hop) noexcept nogil

cdef void free_peers(AnyTable *table) noexcept nogil
cdef size_t peers_bytes(const AnyTable *table) noexcept nogil
