"""Memory for the buffers that the kernel copies packets into and out of."""

from libc.stdint cimport uint8_t
from libc.string cimport memset

cdef enum:
    HUGE_PAGE_BYTES = 2 << 20

cdef extern from "stdlib.h" nogil:
    void *aligned_alloc(size_t alignment, size_t n_bytes)

cdef extern from "sys/mman.h" nogil:
    int MADV_HUGEPAGE
    int madvise(void *start, size_t n_bytes, int advice)


cdef inline uint8_t *allocate_arena(size_t n_bytes) noexcept nogil:
    """Return that many bytes of zeros, in huge pages where the kernel grants them; NULL without memory.

    The kernel copies 64 KiB at a time into these buffers and out of them: in small pages that is 16 entries of the TLB
    each, and in a virtual machine a miss walks two page tables.
    """
    cdef size_t arena_bytes = (n_bytes + HUGE_PAGE_BYTES - 1) // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES
    cdef uint8_t *arena = <uint8_t *> aligned_alloc(HUGE_PAGE_BYTES, arena_bytes)
    if arena != NULL:
        madvise(arena, arena_bytes, MADV_HUGEPAGE)      # only advice: refused, the pages are small
        memset(arena, 0, arena_bytes)
    return arena
