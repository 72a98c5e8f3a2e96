"""IPv4's route list and table as Python has them. What engines see of a table is in `table.pxd`."""

from libc.stdint cimport uint32_t, uint64_t

from flannel_udp._fastpath.table cimport (
    FIRST_PEER,
    HOPS_MAX,
    NO_ROUTE_HOP,
    OWN_HOP,
    Listed,
    Route,
    Table,
    be64toh,
    lookup,
    mac_on_the_wire,
    peer_of,
)

# Raise what a caller of either family's list or table did wrong: ValueError, or MemoryError for `Refused.NO_MEMORY`.
cdef int raise_refused(int refused) except -1
cdef int check_n_hops(Py_ssize_t n_hops) except -1
# `macs` may be None; `addresses` are as for `lacks_macs`.
cdef int check_macs(const uint64_t[::1] macs, const void *addresses, size_t width, Py_ssize_t n_hops) except -1
# Whether a table of `n_before` next hops can become one of `n_hops`, with changes to `hops`.
cdef int check_growth(Py_ssize_t n_hops, uint32_t n_before, uint32_t hops_end, const uint32_t[::1] hops) except -1

# Return what `RouteTable.peer_mac` does.
cdef uint64_t mac_of(const uint64_t *macs, uint32_t n_hops, uint32_t next_hop) noexcept nogil


cdef class RouteList:
    cdef Route *rows
    cdef Listed listed


cdef class RouteTable:
    cdef Table table            # the engines read it while they hold a reference to this object
    cdef int n_engines          # that hold it: while there are any, nobody may write
