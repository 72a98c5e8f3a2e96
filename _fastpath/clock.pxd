"""The clocks, read where a decision needs one and never for every packet; a pause where nothing else helps.

Intervals are measured by CLOCK_MONOTONIC. CLOCK_BOOTTIME goes on while the machine is suspended: leases end by it.
"""

from libc.stdint cimport uint64_t

cdef extern from "<time.h>" nogil:
    cdef enum:
        CLOCK_MONOTONIC
        CLOCK_BOOTTIME
        CLOCK_REALTIME
        CLOCK_REALTIME_COARSE
    cdef struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *now)
    int nanosleep(const timespec *duration, timespec *left)


cdef inline uint64_t read_ns(int clock) noexcept nogil:
    cdef timespec now
    clock_gettime(clock, &now)
    return <uint64_t> now.tv_sec * 1000000000 + <uint64_t> now.tv_nsec


cdef inline uint64_t now_ns() noexcept nogil:
    return read_ns(CLOCK_MONOTONIC)


cdef inline uint64_t boottime_ns() noexcept nogil:
    return read_ns(CLOCK_BOOTTIME)


cdef inline uint64_t wall_clock_ns() noexcept nogil:
    """The time of day as of the last timer tick, some milliseconds ago: a fifth of the cost of the others."""
    return read_ns(CLOCK_REALTIME_COARSE)


cdef inline void pause_ns(long duration_ns) noexcept nogil:
    """Sleep for less than a second."""
    cdef timespec duration
    duration.tv_sec = 0
    duration.tv_nsec = duration_ns
    nanosleep(&duration, NULL)
