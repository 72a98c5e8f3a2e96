"""What waits to be sent: payloads of datagrams, back to back in one arena, grouped into runs.

Each is an inner packet behind what its encapsulation puts in front. A run is consecutive ones for one peer, to be sent
alike, of one size (the last may be shorter): what the kernel
sends as single datagrams from one call with UDP_SEGMENT. Packets leave in the order in which they were queued.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from flannel_udp._fastpath.turn cimport TURN_BYTES
from flannel_udp._fastpath.wire cimport UDP_PAYLOAD_MAX_BYTES

cdef enum:
    RUNS_MAX = 64
    RUN_PACKETS_MAX = 64            # UDP_MAX_SEGMENTS was 64 before Linux 6.9
    OUTER_TOS = 0xff                # these bits of `Run.how`; with one of the next two a run is one packet:
    TO_FRAGMENT = 0x100             # it is larger than the path carries, and goes without "don't fragment"
    ALONE = 0x200                   # the peer's route takes no runs
    SOURCE_PORT_SHIFT = 10          # the bits from here on say which of the source ports
    SEND_ARENA_BYTES = TURN_BYTES + 2 * 64 * 1024

cdef struct Run:
    uint8_t *data
    uint32_t n_bytes
    uint32_t n                      # packets
    uint32_t segment_len            # bytes of each but the last
    uint32_t next_hop
    uint32_t packets_max            # it may get
    uint16_t how                    # OUTER_TOS, TO_FRAGMENT or ALONE, the source port
    bint ended                      # a shorter packet was the last

cdef struct SendQueue:
    uint8_t *arena                  # SEND_ARENA_BYTES
    uint32_t used                   # bytes
    uint32_t n                      # runs
    uint32_t packets_max            # a run: RUN_PACKETS_MAX, or 1 without UDP_SEGMENT
    Run runs[RUNS_MAX]


cdef inline bint queue_has_room(const SendQueue *queue, uint32_t n_bytes) noexcept nogil:
    """Whether one more payload of `n_bytes` can be queued before the queue must be sent."""
    return queue.n < RUNS_MAX and n_bytes <= SEND_ARENA_BYTES - queue.used


cdef inline uint8_t *queue_end(SendQueue *queue) noexcept nogil:
    """Where the next payload's bytes belong. The caller asked `queue_has_room`."""
    return queue.arena + queue.used


cdef inline void queue_commit(SendQueue *queue, uint32_t n_bytes, uint32_t next_hop, uint16_t how) noexcept nogil:
    """Queue the payload of `n_bytes` that was written to `queue_end`."""
    cdef Run *run = &queue.runs[queue.n - 1] if queue.n else NULL
    if (
        run == NULL
        or run.ended
        or run.n >= run.packets_max
        or run.next_hop != next_hop
        or run.how != how
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
        run.how = how
        run.packets_max = 1 if how & (TO_FRAGMENT | ALONE) else queue.packets_max
    run.n_bytes += n_bytes
    run.n += 1
    run.ended = n_bytes < run.segment_len
    queue.used += n_bytes


cdef inline void queue_clear(SendQueue *queue) noexcept nogil:
    queue.n = 0
    queue.used = 0
