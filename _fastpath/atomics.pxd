"""What the control thread and a data thread share without a lock: single words, sequentially consistent."""

from libc.stdint cimport uint64_t

from flannel_udp._fastpath.routes cimport Table

cdef extern from *:
    """
    #define word_load(place) __atomic_load_n((place), __ATOMIC_SEQ_CST)
    #define word_store(place, value) __atomic_store_n((place), (value), __ATOMIC_SEQ_CST)
    #define word_add(place, value) ((void) __atomic_add_fetch((place), (value), __ATOMIC_SEQ_CST))
    """
    const Table *load_table "word_load"(const Table **place) noexcept nogil
    void store_table "word_store"(const Table **place, const Table *value) noexcept nogil
    uint64_t load_word "word_load"(const uint64_t *place) noexcept nogil
    void store_word "word_store"(uint64_t *place, uint64_t value) noexcept nogil
    void add_word "word_add"(uint64_t *place, uint64_t value) noexcept nogil
