"""What the control thread and a data thread share without a lock: single words, sequentially consistent.

Several words that belong together are written under a sequence number that is odd meanwhile (a seqlock): whoever reads
reads again if it was odd, or another one afterwards. The orders are those of Boehm, "Can seqlocks get along with
programming language memory models?", 2012; on x86-64 none of them costs an instruction.
"""

from libc.stdint cimport uint64_t

from flannel_udp._fastpath.capture_ring cimport Ring
from flannel_udp._fastpath.table cimport Table
from flannel_udp._fastpath.table6 cimport Table6

cdef extern from *:
    """
    #define word_load(place) __atomic_load_n((place), __ATOMIC_SEQ_CST)
    #define word_store(place, value) __atomic_store_n((place), (value), __ATOMIC_SEQ_CST)
    #define word_load_relaxed(place) __atomic_load_n((place), __ATOMIC_RELAXED)
    #define word_store_relaxed(place, value) __atomic_store_n((place), (value), __ATOMIC_RELAXED)
    #define word_store_release(place, value) __atomic_store_n((place), (value), __ATOMIC_RELEASE)
    #define fence_release() __atomic_thread_fence(__ATOMIC_RELEASE)
    #define fence_acquire() __atomic_thread_fence(__ATOMIC_ACQUIRE)
    #define word_add(place, value) ((void) __atomic_add_fetch((place), (value), __ATOMIC_SEQ_CST))
    """
    const Table *load_table "word_load"(const Table **place) noexcept nogil
    void store_table "word_store"(const Table **place, const Table *value) noexcept nogil
    const Table6 *load_table6 "word_load"(const Table6 **place) noexcept nogil
    void store_table6 "word_store"(const Table6 **place, const Table6 *value) noexcept nogil
    Ring *load_ring "word_load"(Ring **place) noexcept nogil
    void store_ring "word_store"(Ring **place, Ring *value) noexcept nogil
    uint64_t load_word "word_load"(const uint64_t *place) noexcept nogil
    void store_word "word_store"(uint64_t *place, uint64_t value) noexcept nogil
    uint64_t load_word_relaxed "word_load_relaxed"(const uint64_t *place) noexcept nogil
    void store_word_relaxed "word_store_relaxed"(uint64_t *place, uint64_t value) noexcept nogil
    void store_word_release "word_store_release"(uint64_t *place, uint64_t value) noexcept nogil
    void fence_release() noexcept nogil
    void fence_acquire() noexcept nogil
    void add_word "word_add"(uint64_t *place, uint64_t value) noexcept nogil
