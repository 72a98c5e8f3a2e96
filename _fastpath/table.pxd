"""IPv4's longest-prefix table: look-up inline; `trie.pyx` builds the trie, `routes.pyx` everything around it.

A trie with as many bits a level as pay off (level-compressed: Nilsson and Karlsson, "IP-Address Lookup Using
LC-Tries", 1999). All nodes lie in one array of 32-bit words:

    node at offset o:   [o] stride s     [o + 1 … o + 2^s] one entry for each value of the next s address bits
    entry:              bit 31 set: a leaf, the rest is the next hop;  clear: the offset of a child node

Shorter prefixes are pushed down into the leaves, so the first leaf met is the longest match. The bits that all routes
share are compared once and skipped.

A table that an engine has is never written. One that no engine has (any more) can be brought up to date at the places
that changed: see docs/decisions/0010.
"""

from libc.stdint cimport uint32_t, uint64_t

from flannel_udp._fastpath.wire cimport be32

cdef enum:
    NO_ROUTE_HOP = 0            # no prefix covers the address
    OWN_HOP = 1                 # our own subnet
    FIRST_PEER = 2              # next hops from here on are peer indexes
    HOPS_MAX = 1 << 20          # what an engine has counters for

cdef extern from *:
    """
    #define ROUTE_LEAF UINT32_C(0x80000000)
    """
    const uint32_t ROUTE_LEAF

cdef struct AddressSlot:
    be32 addr
    uint32_t next_hop           # NO_ROUTE_HOP: the slot is free

cdef struct Route:
    uint32_t network            # host order, host bits clear
    uint32_t prefix_len
    uint32_t next_hop

# Of routes in order: by network, then by prefix length, so that a prefix stands before all that it covers.
cdef struct Listed:
    size_t n
    uint32_t n_of_len[129]      # how many there are of each prefix length
    uint32_t hops_end           # every next hop is below this

cdef struct Trie:
    uint32_t *nodes             # the root is node 0
    size_t n_words              # used words of `nodes`
    size_t size_words           # room for words in `nodes`
    uint32_t n_built            # how many routes there were when it was last built as a whole
    uint32_t shared_bits        # address bits that all routes share, host order; IPv6's nodes have them themselves
    uint32_t shared_mask
    uint32_t shared_len         # how many bits that are; at most 31

cdef struct Table:
    Trie trie
    be32 *peer_addr             # underlay address by next hop
    uint64_t *peer_mac          # likewise the MAC, as on the wire in the first six bytes; NULL: the table has none
    uint32_t n_hops             # next hops are below this
    AddressSlot *by_addr        # hash of the peers' underlay addresses, open addressing
    uint32_t by_addr_mask       # its size - 1, a power of two - 1
    be32 own_addr               # flannel0's address; 0: none, so no ICMP answers


cdef inline uint32_t lookup(const Table *table, uint32_t address) noexcept nogil:
    """Return the next hop of the longest prefix that covers `address` (host order), or NO_ROUTE_HOP."""
    cdef uint32_t offset = 0
    cdef uint32_t bits = address << table.trie.shared_len
    cdef uint32_t stride, entry
    if (address ^ table.trie.shared_bits) & table.trie.shared_mask:
        return NO_ROUTE_HOP
    while True:
        stride = table.trie.nodes[offset]
        entry = table.trie.nodes[offset + 1 + (bits >> (32 - stride))]
        if entry & ROUTE_LEAF:
            return entry & ~ROUTE_LEAF
        bits <<= stride
        offset = entry


cdef inline uint32_t hash_addr(be32 addr) noexcept nogil:
    """Spread the bits that differ in a rack's addresses over the word (Fibonacci hashing)."""
    return (addr * <uint32_t> 0x9e3779b1) >> 7


cdef inline uint32_t peer_of(const Table *table, be32 addr) noexcept nogil:
    """Return the peer index whose underlay address is `addr`, or NO_ROUTE_HOP."""
    cdef uint32_t i = hash_addr(addr) & table.by_addr_mask
    while table.by_addr[i].next_hop != NO_ROUTE_HOP and table.by_addr[i].addr != addr:
        i = (i + 1) & table.by_addr_mask
    return table.by_addr[i].next_hop


cdef extern from "<endian.h>" nogil:
    uint64_t htobe64(uint64_t value)
    uint64_t be64toh(uint64_t value)


cdef inline uint64_t mac_on_the_wire(uint64_t mac) noexcept nogil:
    """Return what has the MAC (48 bits, the first byte is the highest) in its first six bytes in memory."""
    return htobe64(mac << 16)
