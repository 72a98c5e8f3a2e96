"""IPv6's routes as a list in order, and the table that engines look them up in. All work is done without the GIL."""

from array import array

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from flannel_udp._fastpath.peer_index cimport (
    forget_peer,
    free_peers,
    index_peers,
    lead_to_peers,
    make_room_for_peers,
    peers_bytes,
    remember_peer,
)
from flannel_udp._fastpath.route_rows cimport Refused, change_rows
from flannel_udp._fastpath.routes cimport (
    RouteList,
    RouteTable,
    check_growth,
    check_macs,
    check_n_hops,
    mac_of,
    raise_refused,
)
from flannel_udp._fastpath.table cimport FIRST_PEER, NO_ROUTE_HOP, mac_on_the_wire
from flannel_udp._fastpath.table6 cimport be128, read_address6
from flannel_udp._fastpath.trie cimport build_trie, patch_trie

cdef enum:
    ADDRESS_BYTES = 16


cdef inline be128 address_at(const uint8_t[::1] addresses, size_t i) noexcept nogil:
    cdef be128 address
    memcpy(&address, &addresses[ADDRESS_BYTES * i], ADDRESS_BYTES)
    return address


cdef inline Route6 route_at(
    const uint8_t[::1] networks, const uint8_t[::1] prefix_lens, size_t i, uint32_t next_hop
) noexcept nogil:
    return Route6(read_address6(&networks[ADDRESS_BYTES * i]), prefix_lens[i], next_hop)


cdef Py_ssize_t count_addresses(const uint8_t[::1] addresses) except -1:
    if addresses.shape[0] % ADDRESS_BYTES:
        raise ValueError("an address has 16 bytes")
    return addresses.shape[0] // ADDRESS_BYTES


cdef be128 packed(address: int) except *:
    """Return the address as on the wire. Raises OverflowError for what is none."""
    cdef be128 result
    cdef bytes octets = address.to_bytes(ADDRESS_BYTES, "big")
    memcpy(&result, <const char *> octets, ADDRESS_BYTES)
    return result


cdef class RouteList6:
    """Routes in the order of network and prefix length, each prefix once. Begins with the given ones, see `change`."""

    def __cinit__(self):
        # Never NULL: memcpy from there, be it of nothing, would be undefined.
        self.rows = <Route6 *> calloc(1, sizeof(Route6))
        if self.rows == NULL:
            raise MemoryError

    def __init__(
        self,
        const uint8_t[::1] networks=None,
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
        const uint8_t[::1] networks not None,
        const uint8_t[::1] prefix_lens not None,
        const uint32_t[::1] next_hops not None,
    ) -> None:
        """Set the next hop of prefixes (16 bytes each, as on the wire), in any order; `NO_ROUTE` takes a route away.

        Raises ValueError for what are no prefixes, or for one that stands there twice, and MemoryError; nothing has
        changed then.
        """
        cdef size_t n = <size_t> count_addresses(networks)
        cdef size_t i
        cdef Refused refused
        cdef Route6 *changes
        if <size_t> prefix_lens.shape[0] != n or <size_t> next_hops.shape[0] != n:
            raise ValueError("networks, prefix_lens and next_hops differ in length")
        changes = <Route6 *> malloc((n + 1) * sizeof(Route6))
        if changes == NULL:
            raise MemoryError
        with nogil:
            for i in range(n):
                changes[i] = route_at(networks, prefix_lens, i, next_hops[i])
            refused = change_rows(&self.rows, &self.listed, changes, n)
            free(changes)
        raise_refused(<int> refused)

    @property
    def memory_bytes(self) -> int:
        """Bytes that the list occupies."""
        return sizeof(RouteList6) + self.listed.n * sizeof(Route6)


cdef inline void set_peer(
    Table6 *table, uint32_t hop, const uint8_t[::1] addresses, const uint64_t[::1] macs
) noexcept nogil:
    table.peer_addr[hop] = address_at(addresses, hop)
    if table.peer_mac != NULL:
        table.peer_mac[hop] = mac_on_the_wire(macs[hop])


cdef class RouteTable6:
    """What engines look up: overlay prefix to next hop, and underlay address to peer index.

    As `RouteTable`; in columns an address is 16 bytes as on the wire, alone it is an integer.
    """

    def __cinit__(
        self,
        RouteList6 routes not None,
        const uint8_t[::1] peer_addresses not None,
        own_address: int = 0,
        const uint64_t[::1] macs=None,
    ):
        cdef Py_ssize_t n_hops = count_addresses(peer_addresses)
        cdef be128 own = packed(own_address)
        cdef uint32_t hop
        cdef int failed
        check_n_hops(n_hops)
        check_macs(macs, &peer_addresses[0], ADDRESS_BYTES, n_hops)
        memcpy(self.table.own_addr, &own, ADDRESS_BYTES)
        if make_room_for_peers(&self.table, <uint32_t> n_hops, macs is not None) < 0:
            raise MemoryError
        for hop in range(FIRST_PEER, <uint32_t> n_hops):
            set_peer(&self.table, hop, peer_addresses, macs)
        if not lead_to_peers(&self.table, <const Route6 *> routes.rows, routes.listed.n):
            raise ValueError("a route has an unknown next hop")
        with nogil:
            failed = build_trie(&self.table.trie, <const Route6 *> routes.rows, &routes.listed)
            if failed == 0:
                failed = index_peers(&self.table)
        if failed:
            raise MemoryError

    def __dealloc__(self):
        free(self.table.trie.nodes)
        free_peers(&self.table)

    def update(
        self,
        RouteList6 routes not None,
        const uint8_t[::1] peer_addresses not None,
        const uint8_t[::1] networks not None,
        const uint8_t[::1] prefix_lens not None,
        const uint32_t[::1] hops not None,
        const uint64_t[::1] macs=None,
    ) -> bool:
        """Become the table of these routes, addresses and MACs: see `RouteTable.update`."""
        cdef Py_ssize_t n_hops = count_addresses(peer_addresses)
        cdef size_t i
        cdef Route6 changed
        cdef int failed = 0
        cdef bint patched = True
        if self.n_engines:
            raise ValueError("an engine has this table")
        if prefix_lens.shape[0] != count_addresses(networks):
            raise ValueError("networks and prefix_lens differ in length")
        check_growth(n_hops, self.table.n_hops, routes.listed.hops_end, hops)
        if (macs is None) != (self.table.peer_mac == NULL):
            raise ValueError("a table has MACs from the beginning, or never")
        check_macs(macs, &peer_addresses[0], ADDRESS_BYTES, n_hops)
        with nogil:
            if n_hops > self.table.n_hops:
                failed = make_room_for_peers(&self.table, <uint32_t> n_hops, self.table.peer_mac != NULL)
                if failed == 0:
                    failed = index_peers(&self.table)
            for i in range(<size_t> hops.shape[0] if failed == 0 else 0):
                forget_peer(&self.table, hops[i])
                set_peer(&self.table, hops[i], peer_addresses, macs)
                remember_peer(&self.table, hops[i])
            for i in range(<size_t> prefix_lens.shape[0] if failed == 0 else 0):
                changed = route_at(networks, prefix_lens, i, NO_ROUTE_HOP)
                patched = patch_trie(
                    &self.table.trie, <const Route6 *> routes.rows, &routes.listed, <const Route6 *> &changed
                ) == 0
                if not patched:
                    failed = build_trie(&self.table.trie, <const Route6 *> routes.rows, &routes.listed)
                    break
        if failed:
            raise MemoryError
        return patched

    def lookup(self, address: int) -> int:
        """Return the next hop for an address; `NO_ROUTE` where no prefix covers it."""
        cdef be128 wanted = packed(address)
        return lookup6(&self.table, <const uint8_t *> &wanted)

    def peer_of(self, address: int) -> int:
        """Return the peer index with this underlay address; `NO_ROUTE` where there is none."""
        cdef be128 wanted = packed(address)
        return peer_of6(&self.table, <const uint8_t *> &wanted)

    def peer_address(self, uint32_t next_hop) -> int:
        """Return a peer's underlay address; 0 for a next hop that is no peer."""
        if next_hop >= self.table.n_hops:
            return 0
        return int.from_bytes((<const char *> &self.table.peer_addr[next_hop])[:ADDRESS_BYTES], "big")

    def peer_mac(self, uint32_t next_hop) -> int:
        """Return a peer's MAC; 0 for a next hop that is no peer, and in a table without MACs."""
        return mac_of(self.table.peer_mac, self.table.n_hops, next_hop)

    @property
    def memory_bytes(self) -> int:
        """Bytes that the table occupies."""
        return sizeof(RouteTable6) + self.table.trie.size_words * sizeof(uint32_t) + peers_bytes(&self.table)


def empty_table(version: int, with_macs: bool) -> RouteTable | RouteTable6:
    """Return a table of that IP version with no route, and no peer."""
    macs = array("Q", [0, 0]) if with_macs else None
    if version == 6:
        return RouteTable6(RouteList6(), bytes(32), macs=macs)
    return RouteTable(RouteList(), array("I", [0, 0]), macs=macs)
