"""An offload that was granted and that the kernel may refuse all the same: off for a while then, and tried again."""

from libc.stdint cimport uint64_t

from flannel_udp._fastpath.clock cimport now_ns

cdef enum:
    RUNG_RETRY_S = 10           # a try that is refused costs one system call and no packet

cdef struct Rung:
    bint on                     # to be used now
    bint refused                # by the kernel when it was used last
    uint64_t retry_ns           # CLOCK_MONOTONIC: when it is due again, if it is off because it was refused


cdef inline void rung_set(Rung *rung, bint granted) noexcept nogil:
    rung.on = granted
    rung.refused = False


cdef inline void rung_refused(Rung *rung) noexcept nogil:
    rung.on = False
    rung.refused = True
    rung.retry_ns = now_ns() + <uint64_t> RUNG_RETRY_S * 1000000000


cdef inline void rung_retry_if_due(Rung *rung) noexcept nogil:
    if rung.refused and not rung.on and now_ns() >= rung.retry_ns:
        rung.on = True


cdef inline bint rung_in_use(const Rung *rung) noexcept nogil:
    """Whether it is on; a try after a refusal counts once it has succeeded."""
    return rung.on and not rung.refused
