"""IPv4's routes as a list in order, and the table that engines look them up in. All work is done without the GIL."""

from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free, malloc

from flannel_udp._fastpath.peer_index cimport (
    forget_peer,
    free_peers,
    index_peers,
    lacks_macs,
    lead_to_peers,
    make_room_for_peers,
    peers_bytes,
    remember_peer,
)
from flannel_udp._fastpath.route_rows cimport Refused, change_rows
from flannel_udp._fastpath.trie cimport build_trie, patch_trie
from flannel_udp._fastpath.wire cimport htonl, ntohl

NO_ROUTE = NO_ROUTE_HOP
OWN = OWN_HOP
PEERS_FROM = FIRST_PEER


cdef int raise_refused(int refused) except -1:
    if refused == Refused.TWICE:
        raise ValueError("a prefix stands there twice")
    if refused == Refused.NO_ROUTES:
        raise ValueError("a route has host bits set, an impossible prefix length or an impossible next hop")
    if refused == Refused.NO_MEMORY:
        raise MemoryError
    return 0


cdef class RouteList:
    """Routes in the order of network and prefix length, each prefix once. Begins with the given ones, see `change`."""

    def __cinit__(self):
        # Never NULL: memcpy from there, be it of nothing, would be undefined.
        self.rows = <Route *> calloc(1, sizeof(Route))
        if self.rows == NULL:
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
        free(self.rows)

    def __len__(self) -> int:
        return <Py_ssize_t> self.listed.n

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
        cdef Refused refused
        cdef Route *changes
        if <size_t> prefix_lens.shape[0] != n or <size_t> next_hops.shape[0] != n:
            raise ValueError("networks, prefix_lens and next_hops differ in length")
        changes = <Route *> malloc((n + 1) * sizeof(Route))
        if changes == NULL:
            raise MemoryError
        with nogil:
            for i in range(n):
                changes[i] = Route(networks[i], prefix_lens[i], next_hops[i])
            refused = change_rows(&self.rows, &self.listed, changes, n)
            free(changes)
        raise_refused(<int> refused)

    @property
    def memory_bytes(self) -> int:
        """Bytes that the list occupies."""
        return sizeof(RouteList) + self.listed.n * sizeof(Route)


cdef int check_n_hops(Py_ssize_t n_hops) except -1:
    if not FIRST_PEER <= n_hops <= HOPS_MAX:
        raise ValueError(f"peer_addresses needs the hops 0 and 1 and at most {HOPS_MAX} in all")
    return 0


cdef int check_macs(const uint64_t[::1] macs, const void *addresses, size_t width, Py_ssize_t n_hops) except -1:
    if macs is None:
        return 0
    if macs.shape[0] != n_hops:
        raise ValueError("peer_addresses and macs differ in length")
    if lacks_macs(&macs[0], addresses, width, <size_t> n_hops):
        raise ValueError("a peer without a MAC, or one of more than 48 bits")
    return 0


cdef int check_growth(Py_ssize_t n_hops, uint32_t n_before, uint32_t hops_end, const uint32_t[::1] hops) except -1:
    cdef Py_ssize_t i
    if not n_before <= n_hops <= HOPS_MAX or hops_end > n_hops:
        raise ValueError("a next hop without an address, or too many of them")
    for i in range(hops.shape[0]):
        if hops[i] < FIRST_PEER or hops[i] >= n_hops:
            raise ValueError("a next hop that is no peer")
    return 0


cdef uint64_t mac_of(const uint64_t *macs, uint32_t n_hops, uint32_t next_hop) noexcept nogil:
    return be64toh(macs[next_hop]) >> 16 if macs != NULL and next_hop < n_hops else 0


cdef inline void set_peer(
    Table *table, uint32_t hop, const uint32_t[::1] addresses, const uint64_t[::1] macs
) noexcept nogil:
    table.peer_addr[hop] = htonl(addresses[hop])
    if table.peer_mac != NULL:
        table.peer_mac[hop] = mac_on_the_wire(macs[hop])


cdef class RouteTable:
    """What engines look up: overlay prefix to next hop, and underlay address to peer index.

    `peer_addresses[hop]` is a peer's underlay address (host order), 0 for a hop that is no peer; hops 0 (no route) and
    1 (our own subnet) never are. `own_address` (host order) is flannel0's; without it no ICMP answers are sent.
    `macs[hop]` is a peer's MAC (48 bits, the first byte on the wire is the highest), where the encapsulation has any.
    Raises ValueError for arguments that are no such table, MemoryError.
    """

    def __cinit__(
        self,
        RouteList routes not None,
        const uint32_t[::1] peer_addresses not None,
        uint32_t own_address=0,
        const uint64_t[::1] macs=None,
    ):
        cdef uint32_t hop, n_hops
        cdef int failed
        check_n_hops(peer_addresses.shape[0])
        check_macs(macs, &peer_addresses[0], sizeof(peer_addresses[0]), peer_addresses.shape[0])
        n_hops = <uint32_t> peer_addresses.shape[0]
        self.table.own_addr = htonl(own_address)
        if make_room_for_peers(&self.table, n_hops, macs is not None) < 0:
            raise MemoryError
        for hop in range(FIRST_PEER, n_hops):
            set_peer(&self.table, hop, peer_addresses, macs)
        if not lead_to_peers(&self.table, <const Route *> routes.rows, routes.listed.n):
            raise ValueError("a route has an unknown next hop")
        with nogil:
            failed = build_trie(&self.table.trie, <const Route *> routes.rows, &routes.listed)
            if failed == 0:
                failed = index_peers(&self.table)
        if failed:
            raise MemoryError

    def __dealloc__(self):
        free(self.table.trie.nodes)
        free_peers(&self.table)

    def update(
        self,
        RouteList routes not None,
        const uint32_t[::1] peer_addresses not None,
        const uint32_t[::1] networks not None,
        const uint8_t[::1] prefix_lens not None,
        const uint32_t[::1] hops not None,
        const uint64_t[::1] macs=None,
    ) -> bool:
        """Become the table of these routes, addresses and MACs, which differ from the present ones in some places only.

        Those are the prefixes `networks` with `prefix_lens`, and the next hops `hops`; `peer_addresses` never gets
        shorter. Return whether that was enough to look at, or else the trie was built anew. Raises ValueError for a
        table that an engine has and for arguments that are no such table; MemoryError, after which the table must not
        be used.
        """
        cdef size_t i
        cdef uint32_t n_hops
        cdef Route changed
        cdef int failed = 0
        cdef bint patched = True
        if self.n_engines:
            raise ValueError("an engine has this table")
        if prefix_lens.shape[0] != networks.shape[0]:
            raise ValueError("networks and prefix_lens differ in length")
        check_growth(peer_addresses.shape[0], self.table.n_hops, routes.listed.hops_end, hops)
        if (macs is None) != (self.table.peer_mac == NULL):
            raise ValueError("a table has MACs from the beginning, or never")
        check_macs(macs, &peer_addresses[0], sizeof(peer_addresses[0]), peer_addresses.shape[0])
        n_hops = <uint32_t> peer_addresses.shape[0]
        with nogil:
            if n_hops > self.table.n_hops:
                failed = make_room_for_peers(&self.table, n_hops, self.table.peer_mac != NULL)
                if failed == 0:
                    failed = index_peers(&self.table)
            for i in range(<size_t> hops.shape[0] if failed == 0 else 0):
                forget_peer(&self.table, hops[i])
                set_peer(&self.table, hops[i], peer_addresses, macs)
                remember_peer(&self.table, hops[i])
            for i in range(<size_t> networks.shape[0] if failed == 0 else 0):
                changed = Route(networks[i], prefix_lens[i], NO_ROUTE_HOP)
                patched = patch_trie(
                    &self.table.trie, <const Route *> routes.rows, &routes.listed, <const Route *> &changed
                ) == 0
                if not patched:
                    failed = build_trie(&self.table.trie, <const Route *> routes.rows, &routes.listed)
                    break
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

    def peer_mac(self, uint32_t next_hop) -> int:
        """Return a peer's MAC; 0 for a next hop that is no peer, and in a table without MACs."""
        return mac_of(self.table.peer_mac, self.table.n_hops, next_hop)

    @property
    def memory_bytes(self) -> int:
        """Bytes that the table occupies."""
        return sizeof(RouteTable) + self.table.trie.size_words * sizeof(uint32_t) + peers_bytes(&self.table)
