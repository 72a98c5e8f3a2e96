"""Routes in order, of either family: finding, checking and changing them, without the GIL."""

from libc.stdint cimport uint32_t

from flannel_udp._fastpath.table cimport Listed, Route
from flannel_udp._fastpath.table6 cimport Route6, uint128

ctypedef fused AnyRoute:
    Route
    Route6

# An address in host order.
ctypedef fused AnyAddress:
    uint32_t
    uint128

cdef enum Refused:
    TAKEN = 0
    NO_MEMORY
    TWICE                       # a prefix stands there twice
    NO_ROUTES                   # host bits set, a prefix length or a next hop that cannot be

# Return the address without the bits behind the prefix.
cdef AnyAddress first_of(AnyAddress address, uint32_t prefix_len) noexcept nogil
# Return the address with all those bits set.
cdef AnyAddress last_of(AnyAddress address, uint32_t prefix_len) noexcept nogil

# Return where the route stands, or would: the index of the first one that is not before it.
cdef size_t find_row(const AnyRoute *rows, const Listed *listed, const AnyRoute *wanted) noexcept nogil
# Return whether this prefix stands there.
cdef bint stands_at(const AnyRoute *rows, const Listed *listed, size_t at, const AnyRoute *wanted) noexcept nogil

# Set the next hop of `n` prefixes, which are sorted here; NO_ROUTE_HOP takes one away. What is refused changes nothing.
cdef Refused change_rows(AnyRoute **rows, Listed *listed, AnyRoute *changes, size_t n) noexcept nogil
