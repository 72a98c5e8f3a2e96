"""Routes in order, of either family."""

from libc.stdlib cimport free, malloc, qsort
from libc.string cimport memcpy

from flannel_udp._fastpath.table cimport HOPS_MAX, NO_ROUTE_HOP


cdef AnyAddress first_of(AnyAddress address, uint32_t prefix_len) noexcept nogil:
    return address & ~last_of(<AnyAddress> 0, prefix_len)


cdef AnyAddress last_of(AnyAddress address, uint32_t prefix_len) noexcept nogil:
    if prefix_len == 8 * sizeof(AnyAddress):
        return address
    return address | (~<AnyAddress> 0) >> prefix_len


cdef inline int compare(const AnyRoute *left, const AnyRoute *right) noexcept nogil:
    if left.network != right.network:
        return -1 if left.network < right.network else 1
    return <int> left.prefix_len - <int> right.prefix_len


cdef int compare4(const void *left, const void *right) noexcept nogil:
    return compare(<const Route *> left, <const Route *> right)


cdef int compare6(const void *left, const void *right) noexcept nogil:
    return compare(<const Route6 *> left, <const Route6 *> right)


cdef size_t find_row(const AnyRoute *rows, const Listed *listed, const AnyRoute *wanted) noexcept nogil:
    cdef size_t low = 0
    cdef size_t high = listed.n
    cdef size_t middle
    while low < high:
        middle = (low + high) // 2
        if compare(&rows[middle], wanted) < 0:
            low = middle + 1
        else:
            high = middle
    return low


cdef bint stands_at(const AnyRoute *rows, const Listed *listed, size_t at, const AnyRoute *wanted) noexcept nogil:
    return at < listed.n and compare(&rows[at], wanted) == 0


cdef Refused change_rows(AnyRoute **rows, Listed *listed, AnyRoute *changes, size_t n) noexcept nogil:
    cdef uint32_t hops_end = listed.hops_end
    cdef size_t i
    for i in range(n):
        if not is_route(&changes[i]):
            return NO_ROUTES
        hops_end = max(hops_end, <uint32_t> (changes[i].next_hop + 1))
    if sort_changes(changes, n):
        return TWICE
    if merge_changes(rows, listed, changes, n):
        return NO_MEMORY
    listed.hops_end = hops_end
    return TAKEN


cdef inline bint is_route(const AnyRoute *row) noexcept nogil:
    if row.prefix_len > 8 * sizeof(row.network) or row.next_hop >= HOPS_MAX:
        return False
    return first_of(row.network, row.prefix_len) == row.network


cdef int sort_changes(AnyRoute *changes, size_t n) noexcept nogil:
    """Sort, unless that is done; return 1 when a prefix stands there twice."""
    cdef size_t i = 1
    while i < n and compare(&changes[i - 1], &changes[i]) < 0:
        i += 1
    if i < n:
        qsort(changes, n, sizeof(changes[0]), compare4 if AnyRoute is Route else compare6)
    for i in range(1, n):
        if compare(&changes[i - 1], &changes[i]) == 0:
            return 1
    return 0


cdef int merge_changes(AnyRoute **rows, Listed *listed, const AnyRoute *changes, size_t n) noexcept nogil:
    """Take in sorted changes; return 0, or -1 without memory, when nothing has changed."""
    cdef size_t n_added = 0
    cdef size_t n_removed = 0
    cdef size_t i, at
    cdef size_t done = 0
    cdef size_t used = 0
    cdef AnyRoute *old = rows[0]
    cdef AnyRoute *new = old    # written to where they are, unless their number changes
    for i in range(n):
        at = find_row(<const AnyRoute *> old, listed, &changes[i])
        if changes[i].next_hop == NO_ROUTE_HOP:
            if stands_at(<const AnyRoute *> old, listed, at, &changes[i]):
                n_removed += 1
        elif not stands_at(<const AnyRoute *> old, listed, at, &changes[i]):
            n_added += 1
    if n_added or n_removed:
        new = <AnyRoute *> malloc((listed.n + n_added - n_removed + 1) * sizeof(old[0]))
        if new == NULL:
            return -1
    for i in range(n):
        at = find_row(<const AnyRoute *> old, listed, &changes[i])
        if new != old:
            memcpy(new + used, old + done, (at - done) * sizeof(old[0]))
        used += at - done
        done = at
        if stands_at(<const AnyRoute *> old, listed, at, &changes[i]):
            done += 1
            listed.n_of_len[changes[i].prefix_len] -= 1
        if changes[i].next_hop != NO_ROUTE_HOP:
            new[used] = changes[i]
            used += 1
            listed.n_of_len[changes[i].prefix_len] += 1
    if new == old:
        return 0
    memcpy(new + used, old + done, (listed.n - done) * sizeof(old[0]))
    used += listed.n - done
    free(old)
    rows[0] = new
    listed.n = used
    return 0
