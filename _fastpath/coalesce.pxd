"""Join the segments of a flow that came in one by one into super-packets, so that the TUN is written to less often.

The write queue holds a batch's packets. Each is either appended to the last write of its flow or becomes a write of its
own; writes go out in the order in which they were begun, so the order within a flow never changes.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from flannel_udp._fastpath.packet cimport Packet
from flannel_udp._fastpath.rung cimport Rung
from flannel_udp._fastpath.wire cimport VirtioNetHeader

cdef enum:
    WRITES_MAX = 1024           # packets a batch, and so writes
    WRITE_SEGMENTS_MAX = 64     # what the kernel splits a UDP super-packet into at most, before Linux 6.9
    FLOW_SLOT_BITS = 8
    FLOW_SLOTS = 1 << FLOW_SLOT_BITS    # a direct-mapped memory of flows: a collision costs a join, never the order
    NONE_YET = 0xffff
    JOINED_HEADER_MAX = 100     # IPv6 header 40 bytes, TCP header at most 60 (RFC 9293 section 3.1)

# A joined segment's payload; its own headers are still in front of it.
cdef struct Piece:
    uint8_t *data
    uint32_t len                # bytes
    uint16_t next               # the next piece of the same write, or NONE_YET

cdef struct Write:
    Packet packet               # the first segment, whole
    uint32_t header_len         # IP and TCP or UDP header, bytes; 0: never to be joined
    uint32_t segment_payload    # bytes of each segment but the last
    uint32_t payload_len        # in all
    uint32_t next_seq           # TCP: the sequence number that must follow, host order
    uint32_t n                  # segments
    uint16_t next_id            # of IPv4: the id that must follow where DF is clear, host order
    uint16_t first_piece        # segments after the first, or NONE_YET
    uint16_t last_piece
    bint verified               # the first segment's TCP or UDP checksum is known to be right
    bint ended                  # nothing may follow

cdef struct WriteQueue:
    uint32_t n                  # writes
    uint32_t n_pieces
    Rung join_tcp
    Rung join_udp
    uint16_t flows[FLOW_SLOTS]  # the last write of a flow, or NONE_YET
    Write writes[WRITES_MAX]
    Piece pieces[WRITES_MAX]

cdef void write_queue_clear(WriteQueue *queue) noexcept nogil


cdef inline bint write_queue_is_full(const WriteQueue *queue) noexcept nogil:
    """Whether WRITES_MAX packets are queued, as writes or as pieces of them."""
    return queue.n + queue.n_pieces >= WRITES_MAX

# Queue an IPv4 packet that is ready for the TUN. The caller sees to it that the queue is not full.
cdef void write_queue_add(WriteQueue *queue, const Packet *packet) noexcept nogil

# Likewise an IPv6 packet.
cdef void write_queue_add6(WriteQueue *queue, const Packet *packet) noexcept nogil

# Write the headers that make several segments one super-packet to `headers` (JOINED_HEADER_MAX bytes), and fill in the
# virtio-net header that goes with them. The segments stay whole.
cdef void write_joined_headers(
    const WriteQueue *queue, const Write *write, uint8_t *headers, VirtioNetHeader *vnet
) noexcept nogil
