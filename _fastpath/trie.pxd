"""Building the tries of `table.pxd` and `table6.pxd`, and bringing them up to date where routes changed."""

from flannel_udp._fastpath.route_rows cimport AnyRoute
from flannel_udp._fastpath.table cimport Listed, Trie

# Give the table a trie of these routes in place of the one it may have; return 0, or -1 without memory.
cdef int build_trie(Trie *trie, const AnyRoute *rows, const Listed *listed) noexcept nogil

# Bring the trie up to routes that differ at this prefix. Return 0, or -1 if it has to be built anew, as it may be half
# done then.
cdef int patch_trie(Trie *trie, const AnyRoute *rows, const Listed *listed, const AnyRoute *changed) noexcept nogil
