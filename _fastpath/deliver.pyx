"""The write queue goes out to the TUN: one system call a packet or super-packet.

One that the kernel refused is judged by `refusal`, and what that says is done; the others go on.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memset

from flannel_udp._fastpath.capture cimport capture_lost, capture_written
from flannel_udp._fastpath.coalesce cimport (
    JOINED_HEADER_MAX,
    NONE_YET,
    WRITE_SEGMENTS_MAX,
    Write,
    WriteQueue,
    write_joined_headers,
    write_queue_clear,
)
from flannel_udp._fastpath.datapath cimport LEASE_ASKED_EVERY, PeerState, lease_expired, state_of
from flannel_udp._fastpath.drops cimport LEASE_EXPIRED, DropReason, count_drops, count_forwarded
from flannel_udp._fastpath.offloaded cimport describe_offload
from flannel_udp._fastpath.packet cimport Packet
from flannel_udp._fastpath.refusal cimport DROP, STOP_JOINING, Refusal, classify_write
from flannel_udp._fastpath.rung cimport Rung, rung_refused, rung_retry_if_due
from flannel_udp._fastpath.sockets cimport iovec
from flannel_udp._fastpath.split cimport Split, plan_split, write_segment
from flannel_udp._fastpath.sysio cimport tun_write
from flannel_udp._fastpath.table cimport FIRST_PEER
from flannel_udp._fastpath.transport cimport l4_checksum_is_right, protocol_of
from flannel_udp._fastpath.wire cimport IPV4_MAX_BYTES, PROTOCOL_TCP, VirtioNetHeader

# What is in front of a super-packet's payload.
cdef packed struct Heading:
    VirtioNetHeader vnet
    uint8_t[JOINED_HEADER_MAX] headers


cdef extern from "whole_batch.h":
    pass


cdef void deliver(Datapath *dp) noexcept nogil:
    cdef WriteQueue *queue = &dp.write_queue
    if dp.ring != NULL:
        write_all(dp, True)
    else:
        write_all(dp, False)
    write_queue_clear(queue)
    rung_retry_if_due(&queue.join_tcp)
    rung_retry_if_due(&queue.join_udp)


cdef inline void write_all(Datapath *dp, bint captures) noexcept nogil:
    cdef Write *write
    cdef uint32_t i
    cdef uint32_t unasked = LEASE_ASKED_EVERY       # packets since it was asked whether the lease lasts
    cdef bint expired = False
    for i in range(dp.write_queue.n):
        write = &dp.write_queue.writes[i]
        if unasked >= LEASE_ASKED_EVERY:
            expired = lease_expired(dp)
            unasked = 0
        unasked += write.n
        if expired:
            count_lost(dp, write, LEASE_EXPIRED, write.n)
        elif write.n == 1:
            write_alone(dp, write, captures)
        else:
            write_joined(dp, write)


cdef inline void write_alone(Datapath *dp, const Write *write, bint captures) noexcept nogil:
    """Write a packet as it came; what a kernel peer left to do to it is said in front of it.

    The virtio-net header goes right in front of it: over the receive buffer's headroom or over the packet that came
    before it, which was written before it, too.
    """
    cdef iovec piece
    if write.packet.gso_size:
        write_uncut(dp, write)
        return
    piece.iov_base = write.packet.data - dp.vnet_bytes
    piece.iov_len = write.packet.len + dp.vnet_bytes
    # One whole packet, checksums already in it. In front of a packet is always room for a header.
    memset(write.packet.data - sizeof(VirtioNetHeader), 0, sizeof(VirtioNetHeader))
    if write.packet.partial:
        describe_offload(&write.packet, <VirtioNetHeader *> piece.iov_base)
    count_written(dp, write, 1, write.packet.len, put(dp, write, &piece, 1, 1, captures))


cdef void write_uncut(Datapath *dp, const Write *write) noexcept nogil:
    """Write a super-packet that a kernel peer sent; cut it ourselves where the TUN does not take it."""
    cdef VirtioNetHeader vnet
    cdef Split split
    cdef iovec pieces[2]
    cdef int written
    memset(&vnet, 0, sizeof(vnet))
    describe_offload(&write.packet, &vnet)
    plan_split(&split, dp.family, &vnet, &write.packet, IPV4_MAX_BYTES)
    pieces[0].iov_base = &vnet
    pieces[0].iov_len = sizeof(vnet)
    pieces[1].iov_base = write.packet.data
    pieces[1].iov_len = write.packet.len
    written = put(dp, write, pieces, 2, split.n, dp.ring != NULL)
    if written < 0 and classify_write(-written, split.n).remedy != DROP:
        dp.calls.tun_join_errors += 1
        write_cut(dp, write, &split)
    else:
        count_written(dp, write, split.n, write.packet.len, written)


cdef void write_cut(Datapath *dp, const Write *write, const Split *split) noexcept nogil:
    """Write each segment of a super-packet."""
    cdef uint8_t *place = dp.tun_buffer     # nothing is read meanwhile
    cdef iovec piece
    cdef uint32_t n_bytes, i
    memset(place, 0, sizeof(VirtioNetHeader))
    for i in range(split.n):
        if i % LEASE_ASKED_EVERY == 0 and lease_expired(dp):
            count_lost(dp, write, LEASE_EXPIRED, split.n - i)
            return
        n_bytes = write_segment(split, &write.packet, i, place + sizeof(VirtioNetHeader))
        piece.iov_base = place
        piece.iov_len = sizeof(VirtioNetHeader) + n_bytes
        count_written(dp, write, 1, n_bytes, put(dp, write, &piece, 1, 1, dp.ring != NULL))


cdef inline void write_joined(Datapath *dp, const Write *write) noexcept nogil:
    """Write the segments as one super-packet, gathered from the memory that each lies in."""
    cdef Heading heading
    cdef iovec pieces[1 + WRITE_SEGMENTS_MAX]
    cdef uint16_t piece = write.first_piece
    cdef uint32_t n = 2
    cdef int written
    memset(&heading.vnet, 0, sizeof(heading.vnet))
    write_joined_headers(&dp.write_queue, write, heading.headers, &heading.vnet)
    pieces[0].iov_base = &heading
    pieces[0].iov_len = sizeof(heading.vnet) + write.header_len
    pieces[1].iov_base = write.packet.data + write.header_len
    pieces[1].iov_len = write.segment_payload
    while piece != NONE_YET:
        pieces[n].iov_base = dp.write_queue.pieces[piece].data
        pieces[n].iov_len = dp.write_queue.pieces[piece].len
        n += 1
        piece = dp.write_queue.pieces[piece].next
    written = put(dp, write, pieces, n, write.n, dp.ring != NULL)
    if written < 0:
        handle_refusal(dp, write, -written)
    else:
        rung_of(dp, write).refused = False
        count_written(dp, write, write.n, write.n * write.header_len + write.payload_len, written)


cdef void handle_refusal(Datapath *dp, const Write *write, int error) noexcept nogil:
    """Do what helps against the error with which the kernel refused a super-packet; count what is lost."""
    cdef Refusal refusal = classify_write(error, write.n)
    dp.calls.tun_join_errors += 1
    if refusal.remedy == STOP_JOINING:
        rung_refused(rung_of(dp, write))
    if refusal.remedy == DROP:
        count_lost(dp, write, refusal.reason, write.n)
    else:
        write_singly(dp, write)


cdef inline Rung *rung_of(Datapath *dp, const Write *write) noexcept nogil:
    if protocol_of(dp.family, write.packet.data) == PROTOCOL_TCP:
        return &dp.write_queue.join_tcp
    return &dp.write_queue.join_udp


cdef void write_singly(Datapath *dp, const Write *write) noexcept nogil:
    """Write each segment as it came, the virtio-net header apart: in front of it lies what may not be written yet."""
    cdef VirtioNetHeader vnet
    cdef Packet segment = write.packet
    cdef iovec pieces[2]
    cdef uint16_t piece = write.first_piece
    cdef uint32_t i
    pieces[0].iov_base = &vnet
    pieces[0].iov_len = sizeof(vnet)
    for i in range(write.n):
        if i % LEASE_ASKED_EVERY == 0 and lease_expired(dp):
            count_lost(dp, write, LEASE_EXPIRED, write.n - i)
            return
        memset(&vnet, 0, sizeof(vnet))
        if not l4_checksum_is_right(dp.family, &segment):
            describe_offload(&segment, &vnet)       # or it would not have been joined
        pieces[1].iov_base = segment.data
        pieces[1].iov_len = segment.len
        count_written(dp, write, 1, segment.len, put(dp, write, pieces, 2, 1, dp.ring != NULL))
        if piece == NONE_YET:
            return
        segment.data = dp.write_queue.pieces[piece].data - write.header_len
        segment.len = write.header_len + dp.write_queue.pieces[piece].len
        piece = dp.write_queue.pieces[piece].next


cdef void count_lost(Datapath *dp, const Write *write, DropReason reason, uint32_t n) noexcept nogil:
    """Count `n` packets of a write as dropped."""
    count_drops(&dp.in_counters, reason, n, &write.packet)
    if dp.ring != NULL:
        capture_lost(dp, write, reason, n)


cdef inline int put(
    Datapath *dp, const Write *write, const iovec *pieces, uint32_t n_pieces, uint32_t n, bint captures
) noexcept nogil:
    """Write the pieces as one packet, or as a super-packet of `n`; return what `tun_write` does."""
    cdef int written = tun_write(dp, pieces, <int> n_pieces)
    if captures and written >= 0:
        capture_written(dp, write, pieces, n_pieces, n)
    return written


cdef inline void count_written(
    Datapath *dp, const Write *write, uint32_t n, uint32_t n_bytes, int written
) noexcept nogil:
    """Count `n` packets of a write, by what `tun_write` returned for them."""
    cdef PeerState *peer
    if written < 0:
        count_lost(dp, write, classify_write(-written, 1).reason, n)
        return
    count_forwarded(&dp.in_counters, n, n_bytes)
    if write.packet.next_hop >= FIRST_PEER:
        peer = state_of(dp, write.packet.next_hop)
        peer.packets_in += n
        peer.bytes_in += n_bytes
