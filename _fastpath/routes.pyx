"""Build the immutable longest-prefix table of `routes.pxd`, without the GIL."""

from libc.stdint cimport UINT32_MAX, int64_t, uint8_t
from libc.stdlib cimport calloc, free, qsort, realloc

from flannel_udp._fastpath.wire cimport htonl, ntohl

NO_ROUTE = NO_ROUTE_HOP
OWN = OWN_HOP
PEERS_FROM = FIRST_PEER

cdef struct Route:
    uint32_t network            # host order, host bits clear
    uint32_t prefix_len
    uint32_t next_hop

cdef struct Builder:
    uint32_t *nodes
    size_t n_words
    size_t size_words


cdef int compare_routes(const void *a, const void *b) noexcept nogil:
    cdef const Route *left = <const Route *> a
    cdef const Route *right = <const Route *> b
    if left.network != right.network:
        return -1 if left.network < right.network else 1
    return <int> left.prefix_len - <int> right.prefix_len


cdef inline uint32_t bits_from(uint32_t address, uint32_t start, uint32_t n) noexcept nogil:
    """Return `n` >= 1 bits of the address from bit `start` < 32 on, counted from the most significant."""
    return (address << start) >> (32 - n)


cdef int64_t add_node(Builder *b, uint32_t stride) noexcept nogil:
    """Append a node; return its offset or -1 when memory ran out or offsets no longer fit 31 bits."""
    cdef size_t offset = b.n_words
    cdef size_t wanted = offset + 1 + (<size_t> 1 << stride)
    cdef size_t size = b.size_words
    cdef uint32_t *grown
    if wanted >= ROUTE_LEAF:
        return -1
    if wanted > size:
        while size < wanted:
            size += size // 2 + 64
        grown = <uint32_t *> realloc(b.nodes, size * sizeof(uint32_t))
        if grown == NULL:
            return -1
        b.nodes = grown
        b.size_words = size
    b.nodes[offset] = stride
    b.n_words = wanted
    return <int64_t> offset


cdef uint32_t choose_stride(const Route *routes, size_t n, uint32_t depth) noexcept nogil:
    """As many bits as the longest prefix still needs, but at most 8 entries a route: bounded memory, few levels."""
    cdef uint32_t longest = depth + 1
    cdef uint32_t affordable = 3
    cdef size_t i
    for i in range(n):
        if routes[i].prefix_len > longest:
            longest = routes[i].prefix_len
    while (<size_t> 1 << (affordable - 2)) < n and affordable < 24:
        affordable += 1
    return min(longest - depth, affordable)


cdef int64_t build_node(
    Builder *b, const Route *routes, size_t n, uint32_t depth, uint32_t inherited
) noexcept nogil:
    """Build the node for `n` routes that share their first `depth` bits; return its offset or -1.

    The routes are sorted by network, then by prefix length: a prefix stands before all that it covers.
    """
    cdef uint32_t stride = choose_stride(routes, n, depth)
    cdef uint32_t end = depth + stride
    cdef int64_t offset = add_node(b, stride)
    cdef int64_t child
    cdef uint32_t entry, last
    cdef size_t i = 0
    cdef size_t group
    if offset < 0:
        return -1
    for entry in range(<uint32_t> 1 << stride):
        b.nodes[offset + 1 + entry] = ROUTE_LEAF | inherited
    while i < n:
        entry = bits_from(routes[i].network, depth, stride)
        if routes[i].prefix_len <= end:
            # It ends in this node: every entry below it. Longer ones come later and overwrite.
            last = entry + ((<uint32_t> 1 << (end - routes[i].prefix_len)) - 1)
            while entry <= last:
                b.nodes[offset + 1 + entry] = ROUTE_LEAF | routes[i].next_hop
                entry += 1
            i += 1
            continue
        group = 1
        while i + group < n and bits_from(routes[i + group].network, depth, stride) == entry:
            group += 1
        child = build_node(b, routes + i, group, end, b.nodes[offset + 1 + entry] & ~ROUTE_LEAF)
        if child < 0:
            return -1
        b.nodes[offset + 1 + entry] = <uint32_t> child
        i += group
    return offset


cdef int build_trie(Table *table, Route *routes, size_t n) noexcept nogil:
    """Sort the routes and build the trie; return 0, -1 without memory, or 1 when a prefix stands there twice."""
    cdef Builder builder
    cdef uint32_t differing = 0
    cdef uint32_t shared = 31
    cdef size_t i = 1
    while i < n and compare_routes(&routes[i - 1], &routes[i]) < 0:
        i += 1
    if i < n:                   # a table that was made from the last one is in order already
        qsort(routes, n, sizeof(Route), compare_routes)
    for i in range(n):
        if i and compare_routes(&routes[i - 1], &routes[i]) == 0:
            return 1
        differing |= routes[0].network ^ routes[i].network
        shared = min(shared, routes[i].prefix_len)
    while shared and differing >> (32 - shared):
        shared -= 1
    if n == 0:
        shared = 0
    table.shared_len = shared
    table.shared_mask = ~(UINT32_MAX >> shared)
    table.shared_bits = routes[0].network & table.shared_mask if n else 0
    builder.nodes = NULL
    builder.n_words = 0
    builder.size_words = 0
    if build_node(&builder, routes, n, shared, NO_ROUTE_HOP) < 0:
        free(builder.nodes)
        return -1
    table.nodes = builder.nodes
    table.n_words = builder.n_words
    return 0


cdef int build_hash(Table *table) noexcept nogil:
    """Index the peers by underlay address, at most three quarters full; return 0, or -1 without memory."""
    cdef uint32_t size = 4
    cdef uint32_t i, hop
    while 3 * size < 4 * table.n_hops:
        size *= 2
    table.by_addr = <AddressSlot *> calloc(size, sizeof(AddressSlot))
    if table.by_addr == NULL:
        return -1
    table.by_addr_mask = size - 1
    for hop in range(FIRST_PEER, table.n_hops):
        if table.peer_addr[hop] == 0:
            continue            # an index that no peer has now
        i = hash_addr(table.peer_addr[hop]) & table.by_addr_mask
        while table.by_addr[i].next_hop != NO_ROUTE_HOP:
            i = (i + 1) & table.by_addr_mask
        table.by_addr[i].addr = table.peer_addr[hop]
        table.by_addr[i].next_hop = hop
    return 0


cdef class RouteTable:
    """An immutable table: overlay prefix to next hop, and underlay address to peer index.

    `networks`, `prefix_lens` and `next_hops` hold one element a route (networks in host order). `peer_addresses[hop]`
    is a peer's underlay address (host order), 0 for a hop that is no peer; hops 0 (no route) and 1 (our own subnet)
    never are. `own_address` (host order) is where ICMP answers come from; without it none are sent. Raises ValueError
    for arguments that are no such table, MemoryError.
    """

    def __cinit__(
        self,
        const uint32_t[::1] networks not None,
        const uint8_t[::1] prefix_lens not None,
        const uint32_t[::1] next_hops not None,
        const uint32_t[::1] peer_addresses not None,
        uint32_t own_address=0,
    ):
        cdef size_t n = <size_t> networks.shape[0]
        cdef size_t i
        cdef int failed = 0
        cdef Route *routes = NULL
        if <size_t> prefix_lens.shape[0] != n or <size_t> next_hops.shape[0] != n:
            raise ValueError("networks, prefix_lens and next_hops differ in length")
        if not FIRST_PEER <= peer_addresses.shape[0] <= HOPS_MAX:
            raise ValueError(f"peer_addresses needs the hops 0 and 1 and at most {HOPS_MAX} in all")
        self.table.n_hops = <uint32_t> peer_addresses.shape[0]
        self.table.own_addr = htonl(own_address)
        routes = <Route *> calloc(n + 1, sizeof(Route))
        self.table.peer_addr = <be32 *> calloc(self.table.n_hops, sizeof(be32))
        if routes == NULL or self.table.peer_addr == NULL:
            free(routes)
            raise MemoryError
        with nogil:
            for i in range(FIRST_PEER, self.table.n_hops):
                self.table.peer_addr[i] = htonl(peer_addresses[i])
            for i in range(n):
                routes[i].network = networks[i]
                routes[i].prefix_len = prefix_lens[i]
                routes[i].next_hop = next_hops[i]
                if (
                    prefix_lens[i] > 32
                    or (prefix_lens[i] < 32 and networks[i] << prefix_lens[i])
                    or next_hops[i] == NO_ROUTE_HOP
                    or next_hops[i] >= self.table.n_hops
                    or (next_hops[i] >= FIRST_PEER and peer_addresses[next_hops[i]] == 0)
                ):
                    failed = 2
                    break
            if failed == 0:
                failed = build_trie(&self.table, routes, n)
            if failed == 0:
                failed = build_hash(&self.table)
            free(routes)
        if failed == 1:
            raise ValueError("a prefix stands in the table twice")
        if failed == 2:
            raise ValueError("a route has host bits set, a prefix length above 32 or an unknown next hop")
        if failed:
            raise MemoryError

    def __dealloc__(self):
        free(self.table.nodes)
        free(self.table.peer_addr)
        free(self.table.by_addr)

    def lookup(self, uint32_t address) -> int:
        """Return the next hop for an address in host order; `NO_ROUTE` where no prefix covers it."""
        return lookup(&self.table, address)

    def peer_of(self, uint32_t address) -> int:
        """Return the peer index with this underlay address (host order); `NO_ROUTE` where there is none."""
        return peer_of(&self.table, htonl(address))

    def peer_address(self, uint32_t next_hop) -> int:
        """Return a peer's underlay address in host order; 0 for a next hop that is no peer."""
        return ntohl(self.table.peer_addr[next_hop]) if next_hop < self.table.n_hops else 0

    @property
    def memory_bytes(self) -> int:
        """Bytes that the table occupies."""
        return (
            sizeof(RouteTable)
            + self.table.n_words * sizeof(uint32_t)
            + self.table.n_hops * sizeof(be32)
            + (<size_t> self.table.by_addr_mask + 1) * sizeof(AddressSlot)
        )
