"""Building the trie of `routes.pxd`, and bringing it up to date where routes changed."""

from libc.stdint cimport uint8_t, uint32_t

from flannel_udp._fastpath.routes cimport Routes, Table

cdef int build_trie(Table *table, const Routes *routes) noexcept nogil
cdef int patch_trie(
    Table *table, const Routes *routes, const uint32_t *networks, const uint8_t *prefix_lens, size_t n
) noexcept nogil
cdef size_t find_route(const Routes *routes, uint32_t network, uint32_t prefix_len) noexcept nogil
