"""Build the trie of `table.pxd` or `table6.pxd` as a whole, or patch it, without the GIL. One code for both families:
what differs is the head of a node, and that IPv6's nodes may leave out bits which all routes below them share.

A patch fills those entries of a large node again that lie below a changed prefix, each with a subtree of its own; the
rest of the trie is not looked at. The words of replaced subtrees are lost, so a trie is given some room. When that is
used up, or when the routes have become so different that other strides would suit them, it is built anew as a whole.
"""

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc

from flannel_udp._fastpath.route_rows cimport AnyAddress, Route, find_row, first_of, last_of, stands_at
from flannel_udp._fastpath.table cimport NO_ROUTE_HOP, ROUTE_LEAF
from flannel_udp._fastpath.table6 cimport NODE6_WORDS, Node6, lies_beside

cdef extern from *:
    unsigned int leading_zeros "(unsigned int) __builtin_clzll"(unsigned long long nonzero) nogil

cdef enum:
    # Smaller tables are built as a whole in less time than a patch would save, and get no room.
    PATCHED_FROM = 4096
    # A node with a stride of so many bits or more is patched; a smaller one below it is built anew instead.
    PATCHED_STRIDE = 12
    NODE4_WORDS = 1

cdef struct Builder:
    uint32_t *nodes
    size_t n_words
    size_t size_words
    bint fixed                  # `nodes` may not grow

# Where the entries of a node are, and which bits of an address they are for.
cdef struct Entries:
    uint32_t offset             # of the first one
    uint32_t depth              # the bits before
    uint32_t stride


cdef inline uint32_t bits_from(AnyAddress address, uint32_t start, uint32_t n) noexcept nogil:
    """Return `n` >= 1 bits of the address from bit `start` on, counted from the most significant."""
    return <uint32_t> ((address << start) >> (8 * sizeof(AnyAddress) - n))


cdef inline uint32_t shared_bits(AnyAddress left, AnyAddress right) noexcept nogil:
    """Return how many bits from the most significant on are the same; of the same address all, or all but one."""
    cdef AnyAddress differing = left ^ right
    if AnyAddress is uint32_t:
        return leading_zeros(<uint64_t> differing << 32 | 1)
    else:
        if differing >> 64:
            return leading_zeros(<uint64_t> (differing >> 64))
        return 64 + leading_zeros(<uint64_t> differing | 1)


cdef uint32_t shared_depth(const AnyRoute *rows, size_t n) noexcept nogil:
    """Return how many bits the routes share, none being shorter; one bit at least is left to lead on."""
    cdef uint32_t depth = <uint32_t> (8 * sizeof(rows[0].network) - 1)
    cdef size_t i
    if n == 0:
        return 0
    for i in range(n):
        depth = min(depth, rows[i].prefix_len)
    return min(depth, shared_bits(rows[0].network, rows[n - 1].network))     # they are in order


cdef uint32_t hop_around(const AnyRoute *rows, const Listed *listed, const AnyRoute *prefix) noexcept nogil:
    """Return the next hop of the longest route that is shorter than the prefix and covers it."""
    cdef AnyRoute shorter = prefix[0]
    cdef size_t at
    while shorter.prefix_len:
        shorter.prefix_len -= 1
        if listed.n_of_len[shorter.prefix_len]:
            shorter.network = first_of(shorter.network, shorter.prefix_len)
            at = find_row(rows, listed, <const AnyRoute *> &shorter)
            if stands_at(rows, listed, at, <const AnyRoute *> &shorter):
                return rows[at].next_hop
    return NO_ROUTE_HOP


cdef int64_t add_node(Builder *b, size_t n_words) noexcept nogil:
    """Append a node; return its offset or -1 when there is no room or offsets no longer fit 31 bits."""
    cdef size_t offset = b.n_words
    cdef size_t wanted = offset + n_words
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
    b.n_words = wanted
    return <int64_t> offset


cdef uint32_t choose_stride(const AnyRoute *rows, size_t n, uint32_t depth) noexcept nogil:
    """As many bits as the longest prefix still needs, but at most 8 entries a route: bounded memory, few levels."""
    cdef uint32_t longest = depth + 1
    cdef uint32_t affordable = 3
    cdef size_t i
    for i in range(n):
        longest = max(longest, rows[i].prefix_len)
    while (<size_t> 1 << (affordable - 2)) < n and affordable < 24:
        affordable += 1
    return min(longest - depth, affordable)


cdef int64_t build_node(Builder *b, const AnyRoute *rows, size_t n, uint32_t depth, uint32_t around) noexcept nogil:
    """Build the node for `n` routes that share their first `depth` bits; return its offset or -1.

    `around` is the next hop where none of them leads.
    """
    cdef Entries entries
    cdef Node6 *node
    cdef int64_t offset
    entries.depth = depth if AnyRoute is Route else shared_depth(rows, n)
    entries.stride = choose_stride(rows, n, entries.depth)
    entries.offset = <uint32_t> (NODE4_WORDS if AnyRoute is Route else NODE6_WORDS)
    offset = add_node(b, entries.offset + (<size_t> 1 << entries.stride))
    if offset < 0:
        return -1
    entries.offset += <uint32_t> offset
    if AnyRoute is Route:
        b.nodes[offset] = entries.stride
    else:
        node = <Node6 *> (b.nodes + offset)
        node.high = <uint64_t> (rows[0].network >> 64)
        node.low = <uint64_t> rows[0].network
        node.around = around
        node.depth = <uint16_t> entries.depth
        node.stride = <uint16_t> entries.stride
    if fill_entries(b, rows, n, &entries, 0, <uint32_t> 1 << entries.stride, around) < 0:
        return -1
    return offset


cdef int fill_entries(
    Builder *b,
    const AnyRoute *rows,
    size_t n,
    const Entries *entries,
    uint32_t first,
    uint32_t n_entries,
    uint32_t around,
) noexcept nogil:
    """Fill entries of a node from the `n` routes that lie below them; return 0 or -1.

    The routes are in order, share what is before these entries and are not wider than them.
    """
    cdef uint32_t end = entries.depth + entries.stride
    cdef int64_t child
    cdef uint32_t entry, last
    cdef size_t i = 0
    cdef size_t group
    for entry in range(first, first + n_entries):
        b.nodes[entries.offset + entry] = ROUTE_LEAF | around
    while i < n:
        entry = bits_from(rows[i].network, entries.depth, entries.stride)
        if rows[i].prefix_len <= end:
            # It ends in this node: every entry below it. Longer ones come later and overwrite.
            last = entry + ((<uint32_t> 1 << (end - rows[i].prefix_len)) - 1)
            while entry <= last:
                b.nodes[entries.offset + entry] = ROUTE_LEAF | rows[i].next_hop
                entry += 1
            i += 1
            continue
        group = 1
        while i + group < n and bits_from(rows[i + group].network, entries.depth, entries.stride) == entry:
            group += 1
        child = build_node(b, rows + i, group, end, b.nodes[entries.offset + entry] & ~ROUTE_LEAF)
        if child < 0:
            return -1
        b.nodes[entries.offset + entry] = <uint32_t> child
        i += group
    return 0


cdef int build_trie(Trie *trie, const AnyRoute *rows, const Listed *listed) noexcept nogil:
    cdef Builder builder
    cdef uint32_t *fitting
    cdef size_t size_words
    cdef uint32_t shared = shared_depth(rows, listed.n)
    builder.nodes = NULL
    builder.n_words = 0
    builder.size_words = 0
    builder.fixed = False
    if build_node(&builder, rows, listed.n, shared, NO_ROUTE_HOP) < 0:
        free(builder.nodes)
        return -1
    size_words = builder.n_words + (builder.n_words // 4 if listed.n >= PATCHED_FROM else 0)
    fitting = <uint32_t *> realloc(builder.nodes, size_words * sizeof(uint32_t))
    if fitting == NULL:
        free(builder.nodes)
        return -1
    free(trie.nodes)
    trie.nodes = fitting
    trie.n_words = builder.n_words
    trie.size_words = size_words
    trie.n_built = <uint32_t> listed.n
    if AnyRoute is Route:
        trie.shared_len = shared
        trie.shared_mask = ~last_of(<uint32_t> 0, shared)
        trie.shared_bits = first_of(rows[0].network, shared) if listed.n else 0
    return 0


cdef int patch_trie(Trie *trie, const AnyRoute *rows, const Listed *listed, const AnyRoute *changed) noexcept nogil:
    cdef Builder builder
    cdef Entries entries
    cdef AnyRoute span, behind
    cdef size_t first
    cdef int failed
    if listed.n < trie.n_built // 2 or listed.n > 2 * <size_t> trie.n_built:
        return -1               # other strides suit them now
    if find_entries(trie, changed, &entries) < 0:
        return -1               # a route that does not share what all the others do
    # The entries below a prefix, or the one entry around it, make a prefix themselves.
    span.prefix_len = min(changed.prefix_len, entries.depth + entries.stride)
    span.network = first_of(changed.network, span.prefix_len)
    behind.prefix_len = 8 * sizeof(span.network) + 1
    behind.network = last_of(span.network, span.prefix_len)
    first = find_row(rows, listed, <const AnyRoute *> &span)
    builder.nodes = trie.nodes
    builder.n_words = trie.n_words
    builder.size_words = trie.size_words
    builder.fixed = True
    failed = fill_entries(
        &builder,
        rows + first,
        find_row(rows, listed, <const AnyRoute *> &behind) - first,
        &entries,
        bits_from(span.network, entries.depth, entries.stride),
        <uint32_t> 1 << (entries.depth + entries.stride - span.prefix_len),
        hop_around(rows, listed, <const AnyRoute *> &span),
    )
    trie.n_words = builder.n_words
    return failed


cdef int find_entries(const Trie *trie, const AnyRoute *changed, Entries *entries) noexcept nogil:
    """Find the node whose entries a patch fills again: the root, or a large one below; return 0, or -1 for none."""
    cdef const Node6 *node
    cdef uint32_t entry = 0
    if AnyRoute is Route:
        entries.offset = <uint32_t> NODE4_WORDS
        entries.depth = trie.shared_len
        entries.stride = trie.nodes[0]
        if changed.prefix_len < entries.depth or (changed.network ^ trie.shared_bits) & trie.shared_mask:
            return -1
        return 0
    else:
        node = <const Node6 *> trie.nodes
        if changed.prefix_len < node.depth or lies_beside(node, changed.network):
            return -1
        while True:
            entries.offset = entry + <uint32_t> NODE6_WORDS
            entries.depth = node.depth
            entries.stride = node.stride
            if changed.prefix_len <= entries.depth + entries.stride:
                return 0
            entry = trie.nodes[entries.offset + bits_from(changed.network, entries.depth, entries.stride)]
            if entry & ROUTE_LEAF:
                return 0
            node = <const Node6 *> (trie.nodes + entry)
            if node.stride < PATCHED_STRIDE or changed.prefix_len < node.depth or lies_beside(node, changed.network):
                return 0
