"""IPv6's longest-prefix table: what `table.pxd` is for IPv4, with a trie that also leaves out bits inside.

IPv6 subnets may lie far from each other: /64 in a /32 differ in 32 bits, of which a hundred thousand of them need 17.
So each node says which prefix all routes below it share, and only the bits behind that lead on (path compression:
Morrison, "PATRICIA", 1968). What lies beside the prefix has the next hop that is valid around the node.

    node at offset o:   [o … o + 5] a `Node6`     [o + 6 … o + 5 + 2^s] one entry for each value of the next s bits
    entry:              as in `table.pxd`

A node has an even number of words, so all of them are aligned to 8 bytes.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from flannel_udp._fastpath.table cimport NO_ROUTE_HOP, ROUTE_LEAF, Trie, be64toh

cdef extern from *:
    """
    __extension__ typedef unsigned __int128 uint128;
    """
    ctypedef unsigned long long uint128     # what Cython is told of its size counts for nothing: C knows it

cdef enum:
    NODE6_WORDS = 6             # of a `Node6`
    DEPTH6_MAX = 127            # one bit at least leads on

# 16 bytes as on the wire.
cdef struct be128:
    uint64_t first
    uint64_t second

cdef struct AddressSlot6:
    be128 addr
    uint32_t next_hop           # NO_ROUTE_HOP: the slot is free

cdef struct Route6:
    uint128 network             # host order, host bits clear
    uint32_t prefix_len
    uint32_t next_hop

cdef struct Node6:
    uint64_t high               # an address below this node, host order; all others have its first `depth` bits
    uint64_t low
    uint32_t around             # the next hop of what comes here and has not
    uint16_t depth              # at most DEPTH6_MAX
    uint16_t stride             # how many bits behind them the entries are for; at least 1

# The fields are those of `Table`.
cdef struct Table6:
    Trie trie
    be128 *peer_addr            # all zero: no peer has this index
    uint64_t *peer_mac
    uint32_t n_hops
    AddressSlot6 *by_addr
    uint32_t by_addr_mask
    uint8_t[16] own_addr        # network order; all zero: none, so no answers


cdef inline uint128 read_address6(const uint8_t *address) noexcept nogil:
    """Return the 16 bytes in network order as an integer in the host's."""
    cdef uint64_t[2] halves
    memcpy(halves, address, sizeof(halves))
    return <uint128> be64toh(halves[0]) << 64 | be64toh(halves[1])


cdef inline bint lies_beside(const Node6 *node, uint128 address) noexcept nogil:
    """Whether the address has not the first bits that all below the node have."""
    cdef uint128 differing = address ^ (<uint128> node.high << 64 | node.low)
    return (differing >> 1) >> (DEPTH6_MAX - node.depth) != 0


cdef inline uint32_t lookup6(const Table6 *table, const uint8_t *dst) noexcept nogil:
    """Return the next hop of the longest prefix that covers the address (network order), or NO_ROUTE_HOP."""
    cdef uint128 address = read_address6(dst)
    cdef uint32_t entry = 0
    cdef uint64_t bits
    cdef const Node6 *node
    while True:
        node = <const Node6 *> (table.trie.nodes + entry)
        if lies_beside(node, address):
            return node.around
        bits = <uint64_t> ((address << node.depth) >> 64) >> (64 - node.stride)
        entry = table.trie.nodes[entry + NODE6_WORDS + bits]
        if entry & ROUTE_LEAF:
            return entry & ~ROUTE_LEAF


cdef inline uint32_t hash_addr6(be128 addr) noexcept nogil:
    """Spread the bits that differ in a rack's addresses over the word, in whichever half they are."""
    cdef uint64_t golden = 0x9e3779b97f4a7c15       # 2^64 divided by the golden ratio
    return <uint32_t> (((addr.first * golden ^ addr.second) * golden) >> 32)


cdef inline bint same_addr6(be128 left, be128 right) noexcept nogil:
    return left.first == right.first and left.second == right.second


cdef inline uint32_t peer_of6(const Table6 *table, const uint8_t *addr) noexcept nogil:
    """Return the peer index whose underlay address is `addr` (network order), or NO_ROUTE_HOP."""
    cdef be128 wanted
    cdef uint32_t i
    memcpy(&wanted, addr, sizeof(wanted))
    i = hash_addr6(wanted) & table.by_addr_mask
    while table.by_addr[i].next_hop != NO_ROUTE_HOP and not same_addr6(table.by_addr[i].addr, wanted):
        i = (i + 1) & table.by_addr_mask
    return table.by_addr[i].next_hop
