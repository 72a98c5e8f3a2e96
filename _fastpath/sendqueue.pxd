"""What waits to be sent: inner packets, back to back in one arena, grouped into runs.

A run is consecutive packets for one peer with one outer TOS and one size (the last may be shorter): what the kernel
sends as single datagrams from one call with UDP_SEGMENT. Packets leave in the order in which they were queued.
"""

from libc.stdint cimport uint8_t, uint32_t

from flannel_udp._fastpath.wire cimport UDP_PAYLOAD_MAX_BYTES

cdef enum:
    RUNS_MAX = 64
    RUN_PACKETS_MAX = 64            # UDP_MAX_SEGMENTS was 64 before Linux 6.9
    SEND_FLUSH_BYTES = 180 * 1024   # send when so much waits: three super-packets share one wake-up of the peer
    SEND_ARENA_BYTES = SEND_FLUSH_BYTES + 2 * 64 * 1024

cdef struct Run:
    uint8_t *data
    uint32_t n_bytes
    uint32_t n                      # packets
    uint32_t segment_len            # bytes of each but the last
    uint32_t next_hop
    uint8_t tos
    bint ended                      # a shorter packet was the last

cdef struct SendQueue:
    uint8_t *arena                  # SEND_ARENA_BYTES
    uint32_t used                   # bytes
    uint32_t n                      # runs
    uint32_t packets_max            # a run: RUN_PACKETS_MAX, or 1 without UDP_SEGMENT
    Run runs[RUNS_MAX]


cdef inline bint queue_has_room(const SendQueue *queue, uint32_t n_bytes) noexcept nogil:
    """Whether one more packet of `n_bytes` can be queued before the queue must be sent."""
    return queue.n < RUNS_MAX and n_bytes <= SEND_ARENA_BYTES - queue.used


cdef inline uint8_t *queue_end(SendQueue *queue) noexcept nogil:
    """Where the next packet's bytes belong. The caller asked `queue_has_room`."""
    return queue.arena + queue.used


cdef inline void queue_commit(SendQueue *queue, uint32_t n_bytes, uint32_t next_hop, uint8_t tos) noexcept nogil:
    """Queue the packet of `n_bytes` that was written to `queue_end`."""
    cdef Run *run = &queue.runs[queue.n - 1] if queue.n else NULL
    if (
        run == NULL
        or run.ended
        or run.n >= queue.packets_max
        or run.next_hop != next_hop
        or run.tos != tos
        or n_bytes > run.segment_len
        or run.n_bytes + n_bytes > UDP_PAYLOAD_MAX_BYTES
    ):
        run = &queue.runs[queue.n]
        queue.n += 1
        run.data = queue.arena + queue.used
        run.n_bytes = 0
        run.n = 0
        run.segment_len = n_bytes
        run.next_hop = next_hop
        run.tos = tos
        run.ended = False
    run.n_bytes += n_bytes
    run.n += 1
    run.ended = n_bytes < run.segment_len
    queue.used += n_bytes


cdef inline void queue_end_run(SendQueue *queue) noexcept nogil:
    """Let nothing follow the packet that was queued last in its run."""
    queue.runs[queue.n - 1].ended = True


cdef inline void queue_clear(SendQueue *queue) noexcept nogil:
    queue.n = 0
    queue.used = 0
