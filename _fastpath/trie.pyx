"""Build the trie of `routes.pxd` as a whole, or patch it, without the GIL.

A patch fills those entries of the root again that lie below a changed prefix, each with a subtree of its own; the rest
of the trie is not looked at. The words of replaced subtrees are lost, so a trie is given some room. When that is used
up, or when the routes have become so different that other strides would suit them, it is built anew as a whole.
"""

from libc.stdint cimport UINT32_MAX, int64_t
from libc.stdlib cimport free, realloc

from flannel_udp._fastpath.routes cimport NO_ROUTE_HOP, ROUTE_LEAF, Route

cdef enum:
    # Smaller tables are built as a whole in less time than a patch would save, and get no room.
    PATCHED_FROM = 4096

cdef struct Builder:
    uint32_t *nodes
    size_t n_words
    size_t size_words
    bint fixed                  # `nodes` may not grow


cdef inline uint32_t mask_of(uint32_t prefix_len) noexcept nogil:
    return ~(UINT32_MAX >> prefix_len) if prefix_len < 32 else UINT32_MAX


cdef inline uint32_t bits_from(uint32_t address, uint32_t start, uint32_t n) noexcept nogil:
    """Return `n` >= 1 bits of the address from bit `start` < 32 on, counted from the most significant."""
    return (address << start) >> (32 - n)


cdef size_t find_route(const Routes *routes, uint32_t network, uint32_t prefix_len) noexcept nogil:
    """Return where the route stands, or would: the index of the first one that is not before it."""
    cdef size_t low = 0
    cdef size_t high = routes.n
    cdef size_t middle
    cdef const Route *row
    while low < high:
        middle = (low + high) // 2
        row = &routes.rows[middle]
        if row.network < network or (row.network == network and row.prefix_len < prefix_len):
            low = middle + 1
        else:
            high = middle
    return low


cdef uint32_t hop_around(const Routes *routes, uint32_t network, uint32_t prefix_len) noexcept nogil:
    """Return the next hop of the longest route that is shorter than the prefix and covers it."""
    cdef uint32_t shorter = prefix_len
    cdef size_t at
    while shorter:
        shorter -= 1
        if routes.n_of_len[shorter]:
            network &= mask_of(shorter)
            at = find_route(routes, network, shorter)
            if at < routes.n and routes.rows[at].network == network and routes.rows[at].prefix_len == shorter:
                return routes.rows[at].next_hop
    return NO_ROUTE_HOP


cdef int64_t add_node(Builder *b, uint32_t stride) noexcept nogil:
    """Append a node; return its offset or -1 when there is no room or offsets no longer fit 31 bits."""
    cdef size_t offset = b.n_words
    cdef size_t wanted = offset + 1 + (<size_t> 1 << stride)
    cdef size_t size = b.size_words
    cdef uint32_t *grown
    if wanted >= ROUTE_LEAF:
        return -1
    if wanted > size:
        if b.fixed:
            return -1
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
    """Build the node for `n` routes that share their first `depth` bits; return its offset or -1."""
    cdef uint32_t stride = choose_stride(routes, n, depth)
    cdef int64_t offset = add_node(b, stride)
    if offset < 0 or fill_entries(b, routes, n, depth, <uint32_t> offset, 0, <uint32_t> 1 << stride, inherited) < 0:
        return -1
    return offset


cdef int fill_entries(
    Builder *b,
    const Route *routes,
    size_t n,
    uint32_t depth,
    uint32_t offset,
    uint32_t first,
    uint32_t n_entries,
    uint32_t inherited,
) noexcept nogil:
    """Fill entries of the node at `offset` from the `n` routes that lie below them; return 0 or -1.

    The routes are sorted as in `Routes`, share their first `depth` bits and are not wider than these entries;
    `inherited` is the next hop where none of them leads.
    """
    cdef uint32_t stride = b.nodes[offset]
    cdef uint32_t end = depth + stride
    cdef int64_t child
    cdef uint32_t entry, last
    cdef size_t i = 0
    cdef size_t group
    for entry in range(first, first + n_entries):
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
    return 0


cdef int build_trie(Table *table, const Routes *routes) noexcept nogil:
    """Give the table a trie of these routes in place of the one it may have; return 0, or -1 without memory."""
    cdef Builder builder
    cdef uint32_t differing = 0
    cdef uint32_t shared = 31 if routes.n else 0
    cdef uint32_t *fitting
    cdef size_t i, size_words
    for i in range(routes.n):
        differing |= routes.rows[0].network ^ routes.rows[i].network
        shared = min(shared, routes.rows[i].prefix_len)
    while shared and differing >> (32 - shared):
        shared -= 1
    builder.nodes = NULL
    builder.n_words = 0
    builder.size_words = 0
    builder.fixed = False
    if build_node(&builder, routes.rows, routes.n, shared, NO_ROUTE_HOP) < 0:
        free(builder.nodes)
        return -1
    size_words = builder.n_words + (builder.n_words // 4 if routes.n >= PATCHED_FROM else 0)
    fitting = <uint32_t *> realloc(builder.nodes, size_words * sizeof(uint32_t))
    if fitting == NULL:
        free(builder.nodes)
        return -1
    free(table.nodes)
    table.nodes = fitting
    table.n_words = builder.n_words
    table.size_words = size_words
    table.n_built = <uint32_t> routes.n
    table.shared_len = shared
    table.shared_mask = mask_of(shared)
    table.shared_bits = routes.rows[0].network & table.shared_mask if routes.n else 0
    return 0


cdef int patch_trie(
    Table *table, const Routes *routes, const uint32_t *networks, const uint8_t *prefix_lens, size_t n
) noexcept nogil:
    """Bring the trie up to `routes`, which differ at these `n` prefixes only.

    Return 0, or -1 if it has to be built anew, as it may be half done then.
    """
    cdef Builder builder
    cdef uint32_t depth = table.shared_len
    cdef uint32_t stride = table.nodes[0]
    cdef uint32_t end = depth + stride
    cdef uint32_t network, span
    cdef size_t i, first, behind
    cdef int failed = 0
    if routes.n < table.n_built // 2 or routes.n > 2 * <size_t> table.n_built:
        return -1               # other strides suit them now
    builder.nodes = table.nodes
    builder.n_words = table.n_words
    builder.size_words = table.size_words
    builder.fixed = True
    for i in range(n):
        if prefix_lens[i] < depth or (networks[i] ^ table.shared_bits) & table.shared_mask:
            return -1           # a route that does not share what all the others do
        # The entries below a prefix, or the one entry around it, make a prefix themselves.
        span = min(<uint32_t> prefix_lens[i], end)
        network = networks[i] & mask_of(span)
        first = find_route(routes, network, span)
        behind = find_route(routes, network | ~mask_of(span), 33)
        failed = fill_entries(
            &builder,
            routes.rows + first,
            behind - first,
            depth,
            0,
            bits_from(network, depth, stride),
            <uint32_t> 1 << (end - span),
            hop_around(routes, network, span),
        )
        if failed:
            break
    table.n_words = builder.n_words
    return failed
