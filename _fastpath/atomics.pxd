"""What the control thread and a data thread share without a lock: single words, sequentially consistent."""

from libc.stdint cimport uint64_t

from flannel_udp._fastpath.routes cimport Table

cdef extern from *:
    """
    #define atomic_load(place) __atomic_load_n((place), __ATOMIC_SEQ_CST)
    #define atomic_store(place, value) __atomic_store_n((place), (value), __ATOMIC_SEQ_CST)
    #define atomic_add(place, value) ((void) __atomic_add_fetch((place), (value), __ATOMIC_SEQ_CST))
    """
    const Table *load_table "atomic_load"(const Table **place) noexcept nogil
    void store_table "atomic_store"(const Table **place, const Table *value) noexcept nogil
    uint64_t load_word "atomic_load"(uint64_t *place) noexcept nogil
    void add_word "atomic_add"(uint64_t *place, uint64_t value) noexcept nogil
