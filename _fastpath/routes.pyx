"""The routes as a list in order, and the table that engines look them up in. All work is done without the GIL."""

from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, qsort, realloc
from libc.string cimport memcpy, memset

from flannel_udp._fastpath.trie cimport build_trie, find_route, patch_trie
from flannel_udp._fastpath.wire cimport htonl, ntohl

NO_ROUTE = NO_ROUTE_HOP
OWN = OWN_HOP
PEERS_FROM = FIRST_PEER


cdef int compare_routes(const void *a, const void *b) noexcept nogil:
    cdef const Route *left = <const Route *> a
    cdef const Route *right = <const Route *> b
    if left.network != right.network:
        return -1 if left.network < right.network else 1
    return <int> left.prefix_len - <int> right.prefix_len


cdef inline bint stands_at(const Routes *routes, size_t at, const Route *route) noexcept nogil:
    return at < routes.n and compare_routes(&routes.rows[at], route) == 0


cdef int sort_changes(Route *changes, size_t n) noexcept nogil:
    """Sort, unless that is done; return 1 when a prefix stands there twice."""
    cdef size_t i = 1
    while i < n and compare_routes(&changes[i - 1], &changes[i]) < 0:
        i += 1
    if i < n:
        qsort(changes, n, sizeof(Route), compare_routes)
    for i in range(1, n):
        if compare_routes(&changes[i - 1], &changes[i]) == 0:
            return 1
    return 0


cdef int merge_changes(Routes *routes, const Route *changes, size_t n) noexcept nogil:
    """Take in sorted changes; return 0, or -1 without memory, when nothing has changed."""
    cdef size_t n_added = 0
    cdef size_t n_removed = 0
    cdef size_t i, at
    cdef size_t done = 0
    cdef size_t used = 0
    cdef Route *rows
    for i in range(n):
        at = find_route(routes, changes[i].network, changes[i].prefix_len)
        if changes[i].next_hop == NO_ROUTE_HOP:
            if stands_at(routes, at, &changes[i]):
                n_removed += 1
        elif not stands_at(routes, at, &changes[i]):
            n_added += 1
    rows = routes.rows          # written to where they are, unless their number changes
    if n_added or n_removed:
        rows = <Route *> malloc((routes.n + n_added - n_removed + 1) * sizeof(Route))
        if rows == NULL:
            return -1
    for i in range(n):
        at = find_route(routes, changes[i].network, changes[i].prefix_len)
        if rows != routes.rows:
            memcpy(rows + used, routes.rows + done, (at - done) * sizeof(Route))
        used += at - done
        done = at
        if stands_at(routes, at, &changes[i]):
            done += 1
            routes.n_of_len[changes[i].prefix_len] -= 1
        if changes[i].next_hop != NO_ROUTE_HOP:
            rows[used] = changes[i]
            used += 1
            routes.n_of_len[changes[i].prefix_len] += 1
    if rows == routes.rows:
        return 0
    memcpy(rows + used, routes.rows + done, (routes.n - done) * sizeof(Route))
    used += routes.n - done
    free(routes.rows)
    routes.rows = rows
    routes.n = used
    return 0


cdef class RouteList:
    """Routes in the order of network and prefix length, each prefix once. Begins with the given ones, see `change`."""

    def __cinit__(self):
        # Never NULL: memcpy from there, be it of nothing, would be undefined.
        self.routes.rows = <Route *> calloc(1, sizeof(Route))
        if self.routes.rows == NULL:
            raise MemoryError

    def __init__(
        self,
        const uint32_t[::1] networks=None,
        const uint8_t[::1] prefix_lens=None,
        const uint32_t[::1] next_hops=None,
    ):
        if networks is not None:
            self.change(networks, prefix_lens, next_hops)

    def __dealloc__(self):
        free(self.routes.rows)

    def __len__(self) -> int:
        return <Py_ssize_t> self.routes.n

    def change(
        self,
        const uint32_t[::1] networks not None,
        const uint8_t[::1] prefix_lens not None,
        const uint32_t[::1] next_hops not None,
    ) -> None:
        """Set the next hop of prefixes (host order), in any order; `NO_ROUTE` takes a route away.

        Raises ValueError for what are no prefixes, or for one that stands there twice, and MemoryError; nothing has
        changed then.
        """
        cdef size_t n = <size_t> networks.shape[0]
        cdef size_t i
        cdef uint32_t hops_end = self.hops_end
        cdef int failed = 0
        cdef Route *changes
        if <size_t> prefix_lens.shape[0] != n or <size_t> next_hops.shape[0] != n:
            raise ValueError("networks, prefix_lens and next_hops differ in length")
        changes = <Route *> malloc((n + 1) * sizeof(Route))
        if changes == NULL:
            raise MemoryError
        with nogil:
            for i in range(n):
                changes[i].network = networks[i]
                changes[i].prefix_len = prefix_lens[i]
                changes[i].next_hop = next_hops[i]
                hops_end = max(hops_end, <uint32_t> (next_hops[i] + 1))
                if (
                    prefix_lens[i] > 32
                    or (prefix_lens[i] < 32 and networks[i] << prefix_lens[i])
                    or next_hops[i] >= HOPS_MAX
                ):
                    failed = 2
                    break
            if failed == 0:
                failed = sort_changes(changes, n)
            if failed == 0:
                failed = merge_changes(&self.routes, changes, n)
            free(changes)
        if failed == 1:
            raise ValueError("a prefix stands there twice")
        if failed == 2:
            raise ValueError("a route has host bits set, a prefix length above 32 or an impossible next hop")
        if failed:
            raise MemoryError
        self.hops_end = hops_end

    @property
    def memory_bytes(self) -> int:
        """Bytes that the list occupies."""
        return sizeof(RouteList) + self.routes.n * sizeof(Route)


cdef void remember_peer(Table *table, be32 addr, uint32_t hop) noexcept nogil:
    cdef uint32_t i = hash_addr(addr) & table.by_addr_mask
    while table.by_addr[i].next_hop != NO_ROUTE_HOP:
        i = (i + 1) & table.by_addr_mask
    table.by_addr[i].addr = addr
    table.by_addr[i].next_hop = hop


cdef void forget_peer(Table *table, be32 addr, uint32_t hop) noexcept nogil:
    """Empty the slot and close the gap: no search may end before what stands behind it (Knuth, 6.4, algorithm R)."""
    cdef uint32_t mask = table.by_addr_mask
    cdef uint32_t gap = hash_addr(addr) & mask
    cdef uint32_t i
    while table.by_addr[gap].addr != addr or table.by_addr[gap].next_hop != hop:
        gap = (gap + 1) & mask
    i = (gap + 1) & mask
    while table.by_addr[i].next_hop != NO_ROUTE_HOP:
        # It may move to the gap unless its search begins behind that.
        if ((i - hash_addr(table.by_addr[i].addr)) & mask) >= ((i - gap) & mask):
            table.by_addr[gap] = table.by_addr[i]
            gap = i
        i = (i + 1) & mask
    table.by_addr[gap].addr = 0
    table.by_addr[gap].next_hop = NO_ROUTE_HOP


cdef int build_hash(Table *table) noexcept nogil:
    """Index the peers by underlay address, at most three quarters full; return 0, or -1 without memory."""
    cdef uint32_t size = 4
    cdef uint32_t hop
    while 3 * size < 4 * table.n_hops:
        size *= 2
    free(table.by_addr)
    table.by_addr = <AddressSlot *> calloc(size, sizeof(AddressSlot))
    if table.by_addr == NULL:
        return -1
    table.by_addr_mask = size - 1
    for hop in range(FIRST_PEER, table.n_hops):
        if table.peer_addr[hop]:        # else no peer has this index now
            remember_peer(table, table.peer_addr[hop], hop)
    return 0


cdef class RouteTable:
    """What engines look up: overlay prefix to next hop, and underlay address to peer index.

    `peer_addresses[hop]` is a peer's underlay address (host order), 0 for a hop that is no peer; hops 0 (no route) and
    1 (our own subnet) never are. `own_address` (host order) is where ICMP answers come from; without it none are sent.
    Raises ValueError for arguments that are no such table, MemoryError.
    """

    def __cinit__(self, RouteList routes not None, const uint32_t[::1] peer_addresses not None, uint32_t own_address=0):
        cdef size_t i
        cdef uint32_t hop
        cdef int failed = 0
        if not FIRST_PEER <= peer_addresses.shape[0] <= HOPS_MAX:
            raise ValueError(f"peer_addresses needs the hops 0 and 1 and at most {HOPS_MAX} in all")
        self.table.n_hops = <uint32_t> peer_addresses.shape[0]
        self.table.own_addr = htonl(own_address)
        self.table.peer_addr = <be32 *> calloc(self.table.n_hops, sizeof(be32))
        if self.table.peer_addr == NULL:
            raise MemoryError
        with nogil:
            for hop in range(FIRST_PEER, self.table.n_hops):
                self.table.peer_addr[hop] = htonl(peer_addresses[hop])
            for i in range(routes.routes.n):
                hop = routes.routes.rows[i].next_hop
                if hop >= self.table.n_hops or (hop >= FIRST_PEER and peer_addresses[hop] == 0):
                    failed = 1
                    break
            if failed == 0:
                failed = build_trie(&self.table, &routes.routes)
            if failed == 0:
                failed = build_hash(&self.table)
        if failed == 1:
            raise ValueError("a route has an unknown next hop")
        if failed:
            raise MemoryError

    def __dealloc__(self):
        free(self.table.nodes)
        free(self.table.peer_addr)
        free(self.table.by_addr)

    def update(
        self,
        RouteList routes not None,
        const uint32_t[::1] peer_addresses not None,
        const uint32_t[::1] networks not None,
        const uint8_t[::1] prefix_lens not None,
        const uint32_t[::1] hops not None,
    ) -> bool:
        """Become the table of these routes and addresses, which differ from the present ones at most in some places.

        Those are the prefixes `networks` with `prefix_lens`, and the next hops `hops`; `peer_addresses` never gets
        shorter. Return whether that was enough to look at, or else the trie was built anew. Raises ValueError for a
        table that an engine has and for arguments that are no such table; MemoryError, after which the table must not
        be used.
        """
        cdef size_t i
        cdef uint32_t hop
        cdef int failed = 0
        cdef bint patched = True
        cdef be32 *grown
        cdef uint32_t n_before = self.table.n_hops
        if self.n_engines:
            raise ValueError("an engine has this table")
        if prefix_lens.shape[0] != networks.shape[0]:
            raise ValueError("networks and prefix_lens differ in length")
        if not n_before <= peer_addresses.shape[0] <= HOPS_MAX or routes.hops_end > peer_addresses.shape[0]:
            raise ValueError("a next hop without an address, or too many of them")
        for i in range(<size_t> hops.shape[0]):
            if hops[i] < FIRST_PEER or hops[i] >= peer_addresses.shape[0]:
                raise ValueError("a next hop that is no peer")
        if peer_addresses.shape[0] > n_before:
            grown = <be32 *> realloc(self.table.peer_addr, <size_t> peer_addresses.shape[0] * sizeof(be32))
            if grown == NULL:
                raise MemoryError
            memset(grown + n_before, 0, (<size_t> peer_addresses.shape[0] - n_before) * sizeof(be32))
            self.table.peer_addr = grown
            self.table.n_hops = <uint32_t> peer_addresses.shape[0]
        with nogil:
            if 3 * (<uint64_t> self.table.by_addr_mask + 1) < 4 * <uint64_t> self.table.n_hops:
                failed = build_hash(&self.table)
            for i in range(<size_t> hops.shape[0] if failed == 0 else 0):
                hop = hops[i]
                if self.table.peer_addr[hop]:
                    forget_peer(&self.table, self.table.peer_addr[hop], hop)
                self.table.peer_addr[hop] = htonl(peer_addresses[hop])
                if peer_addresses[hop]:
                    remember_peer(&self.table, self.table.peer_addr[hop], hop)
            if failed == 0 and networks.shape[0]:
                patched = not patch_trie(
                    &self.table, &routes.routes, &networks[0], &prefix_lens[0], <size_t> networks.shape[0]
                )
                if not patched:
                    failed = build_trie(&self.table, &routes.routes)
        if failed:
            raise MemoryError
        return patched

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
            + self.table.size_words * sizeof(uint32_t)
            + self.table.n_hops * sizeof(be32)
            + (<size_t> self.table.by_addr_mask + 1) * sizeof(AddressSlot)
        )
