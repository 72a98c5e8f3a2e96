"""A ring of captured packets; what Python has of it."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from flannel_udp._fastpath.atomics cimport (
    load_word,
    load_word_relaxed,
    store_word,
    store_word_relaxed,
    store_word_release,
)
from flannel_udp._fastpath.drops cimport DROP_REASONS

cdef enum:
    ALIGNED_BYTES = 8           # to which records are padded, so that the next one begins there

RECORD_BYTES = sizeof(Record)


cdef bint takes(Ring *ring, Place place, DropReason reason) noexcept nogil:
    if not (ring.places >> <uint32_t> place & 1 and ring.reasons >> <uint64_t> reason & 1):
        return False
    ring.n_wanted += 1
    if ring.n_wanted % ring.every != 0:
        return False
    store_word_relaxed(&ring.n_taken[<int> place], ring.n_taken[<int> place] + 1)
    return True


cdef void note(Ring *ring, Record *record, const iovec *pieces, uint32_t n_pieces, size_t skip) noexcept nogil:
    cdef uint64_t at = ring.head
    cdef size_t whole = 0
    cdef size_t left, part
    cdef uint32_t i
    for i in range(n_pieces):
        whole += pieces[i].iov_len
    whole -= skip
    record.packet_bytes = <uint32_t> whole
    record.kept = min(<uint32_t> whole, ring.snap_bytes)
    record.n_bytes = (
        <uint32_t> sizeof(Record) + (record.kept + <uint32_t> ALIGNED_BYTES - 1) // ALIGNED_BYTES * ALIGNED_BYTES
    )
    if record.n_bytes > ring.size - (at - load_word(&ring.tail)):
        store_word_relaxed(&ring.n_lost[record.place], ring.n_lost[record.place] + 1)
        return
    copy_in(ring, at, record, sizeof(Record))
    at += sizeof(Record)
    left = record.kept
    for i in range(n_pieces):
        if skip >= pieces[i].iov_len:
            skip -= pieces[i].iov_len
            continue
        part = min(left, pieces[i].iov_len - skip)
        copy_in(ring, at, <const uint8_t *> pieces[i].iov_base + skip, part)
        at += part
        left -= part
        skip = 0
    store_word_release(&ring.head, ring.head + record.n_bytes)


cdef void copy_in(Ring *ring, uint64_t at, const void *source, size_t n_bytes) noexcept nogil:
    """Copy to where the ring has the byte `at`, and on from its start where it ends."""
    cdef size_t offset = at & (ring.size - 1)
    cdef size_t first = min(n_bytes, ring.size - offset)
    memcpy(ring.data + offset, source, first)
    memcpy(ring.data, <const uint8_t *> source + first, n_bytes - first)


cdef size_t whole_records(const Ring *ring, uint64_t start, uint64_t end, uint64_t most_bytes) noexcept nogil:
    """Return how many bytes the first whole records have, together no more than that but for the first one."""
    cdef uint64_t at = start
    cdef uint32_t n_bytes
    while at != end:
        # In one piece wherever the ring ends: it is aligned, as records are.
        n_bytes = (<const Record *> (ring.data + (at & (ring.size - 1)))).n_bytes
        if at != start and at + n_bytes - start > most_bytes:
            break
        at += n_bytes
    return at - start


cdef class CaptureRing:
    """Takes `snap_bytes` of each packet that has one of these `places` and `reasons`, a bit each, one in `every`.

    It has `n_bytes`, a power of two. Raises ValueError, MemoryError.
    """

    def __cinit__(self, uint64_t n_bytes, uint32_t snap_bytes, uint32_t places, uint64_t reasons, uint32_t every=1):
        if n_bytes < 2 * sizeof(Record) or n_bytes & (n_bytes - 1):
            raise ValueError("a ring has a power of two of bytes, and room for two records")
        if every == 0 or places >> <uint32_t> PLACES_N or reasons >> <uint64_t> DROP_REASONS:
            raise ValueError("one packet in 1 or more, places and reasons that there are")
        memset(&self.ring, 0, sizeof(self.ring))
        self.ring.data = <uint8_t *> calloc(n_bytes, 1)
        if self.ring.data == NULL:
            raise MemoryError
        self.ring.size = n_bytes
        self.ring.snap_bytes = snap_bytes
        self.ring.places = places
        self.ring.reasons = reasons
        self.ring.every = every

    def __dealloc__(self):
        free(self.ring.data)

    def take(self, uint64_t most_bytes=0xffffffff) -> bytes:
        """Return the records that nobody has taken yet, and have their room back: so many bytes at most.

        One record there is whatever its size. From one thread at a time.
        """
        cdef uint64_t tail = self.ring.tail
        cdef size_t n_bytes = whole_records(&self.ring, tail, load_word(&self.ring.head), most_bytes)
        cdef size_t offset = tail & (self.ring.size - 1)
        cdef size_t first = min(n_bytes, self.ring.size - offset)
        cdef bytes taken = PyBytes_FromStringAndSize(NULL, <Py_ssize_t> n_bytes)
        cdef char *place = PyBytes_AS_STRING(taken)
        memcpy(place, self.ring.data + offset, first)
        memcpy(place + first, self.ring.data, n_bytes - first)
        store_word(&self.ring.tail, tail + n_bytes)
        return taken

    def counts(self) -> tuple:
        """Return how many packets were to be noted, and how many of those found no room: a tuple each, by place."""
        cdef uint32_t i
        return (
            tuple([load_word_relaxed(&self.ring.n_taken[i]) for i in range(<uint32_t> PLACES_N)]),
            tuple([load_word_relaxed(&self.ring.n_lost[i]) for i in range(<uint32_t> PLACES_N)]),
        )
