"""The peers of a table of either family, by next hop and by underlay address."""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcmp, memset

from flannel_udp._fastpath.table cimport FIRST_PEER, NO_ROUTE_HOP, AddressSlot, hash_addr
from flannel_udp._fastpath.table6 cimport AddressSlot6, be128, hash_addr6, same_addr6
from flannel_udp._fastpath.wire cimport be32

ctypedef fused AnyWireAddress:
    be32
    be128


cdef inline uint32_t hash_of(AnyWireAddress addr) noexcept nogil:
    if AnyWireAddress is be32:
        return hash_addr(addr)
    else:
        return hash_addr6(addr)


cdef inline bint same(AnyWireAddress left, AnyWireAddress right) noexcept nogil:
    if AnyWireAddress is be32:
        return left == right
    else:
        return same_addr6(left, right)


cdef inline bint is_peer(AnyWireAddress addr) noexcept nogil:
    if AnyWireAddress is be32:
        return addr != 0
    else:
        return addr.first != 0 or addr.second != 0


cdef bint lacks_macs(const uint64_t *macs, const void *addresses, size_t width, size_t n) noexcept nogil:
    cdef uint64_t[2] nobody = [0, 0]
    cdef const char *address = <const char *> addresses
    cdef size_t hop
    for hop in range(n):
        if macs[hop] >> 48 or (macs[hop] == 0 and memcmp(address + hop * width, nobody, width) != 0):
            return True
    return False


cdef bint lead_to_peers(const AnyTable *table, const AnyRoute *rows, size_t n) noexcept nogil:
    cdef uint32_t hop
    cdef size_t i
    for i in range(n):
        hop = rows[i].next_hop
        if hop >= table.n_hops or (hop >= FIRST_PEER and not is_peer(table.peer_addr[hop])):
            return False
    return True


cdef int make_room_for_peers(AnyTable *table, uint32_t n_hops, bint with_macs) noexcept nogil:
    cdef size_t n_new = n_hops - table.n_hops
    cdef void *addresses = realloc(table.peer_addr, n_hops * sizeof(table.peer_addr[0]))
    cdef uint64_t *macs
    if addresses == NULL:
        return -1
    if AnyTable is Table:
        table.peer_addr = <be32 *> addresses
    else:
        table.peer_addr = <be128 *> addresses
    memset(&table.peer_addr[table.n_hops], 0, n_new * sizeof(table.peer_addr[0]))
    if with_macs:
        macs = <uint64_t *> realloc(table.peer_mac, n_hops * sizeof(uint64_t))
        if macs == NULL:
            return -1
        memset(&macs[table.n_hops], 0, n_new * sizeof(uint64_t))
        table.peer_mac = macs
    table.n_hops = n_hops
    return 0


cdef int index_peers(AnyTable *table) noexcept nogil:
    """At most three quarters of the slots are used, so that searches are short."""
    cdef uint32_t size = 4
    cdef uint32_t hop
    cdef void *slots
    while 3 * <uint64_t> size < 4 * <uint64_t> table.n_hops:
        size *= 2
    if table.by_addr != NULL and size <= table.by_addr_mask + 1:
        return 0
    slots = calloc(size, sizeof(table.by_addr[0]))
    if slots == NULL:
        return -1
    free(table.by_addr)
    if AnyTable is Table:
        table.by_addr = <AddressSlot *> slots
    else:
        table.by_addr = <AddressSlot6 *> slots
    table.by_addr_mask = size - 1
    for hop in range(FIRST_PEER, table.n_hops):
        remember_peer(table, hop)
    return 0


cdef void remember_peer(AnyTable *table, uint32_t hop) noexcept nogil:
    cdef uint32_t i
    if not is_peer(table.peer_addr[hop]):
        return
    i = hash_of(table.peer_addr[hop]) & table.by_addr_mask
    while table.by_addr[i].next_hop != NO_ROUTE_HOP:
        i = (i + 1) & table.by_addr_mask
    table.by_addr[i].addr = table.peer_addr[hop]
    table.by_addr[i].next_hop = hop


cdef void forget_peer(AnyTable *table, uint32_t hop) noexcept nogil:
    """Empty the slot and close the gap: no search may end before what stands behind it (Knuth, 6.4, algorithm R)."""
    cdef uint32_t mask = table.by_addr_mask
    cdef uint32_t gap, i
    if not is_peer(table.peer_addr[hop]):
        return
    gap = hash_of(table.peer_addr[hop]) & mask
    while table.by_addr[gap].next_hop != hop or not same(table.by_addr[gap].addr, table.peer_addr[hop]):
        gap = (gap + 1) & mask
    i = (gap + 1) & mask
    while table.by_addr[i].next_hop != NO_ROUTE_HOP:
        # It may move to the gap unless its search begins behind that.
        if ((i - hash_of(table.by_addr[i].addr)) & mask) >= ((i - gap) & mask):
            table.by_addr[gap] = table.by_addr[i]
            gap = i
        i = (i + 1) & mask
    memset(&table.by_addr[gap], 0, sizeof(table.by_addr[0]))


cdef void free_peers(AnyTable *table) noexcept nogil:
    free(table.peer_addr)
    free(table.peer_mac)
    free(table.by_addr)


cdef size_t peers_bytes(const AnyTable *table) noexcept nogil:
    """Return how much memory they occupy."""
    cdef size_t for_each = sizeof(table.peer_addr[0]) + (sizeof(uint64_t) if table.peer_mac != NULL else 0)
    return table.n_hops * for_each + (<size_t> table.by_addr_mask + 1) * sizeof(table.by_addr[0])
