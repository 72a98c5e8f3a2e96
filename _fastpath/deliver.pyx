"""The write queue goes out to the TUN: one system call a packet or super-packet.

One that the kernel refused is judged by `refusal`: all that can be done is to count it. The others go on.
"""

from libc.stdint cimport uint16_t, uint32_t
from libc.string cimport memcpy, memset

from flannel_udp._fastpath.coalesce cimport (
    NONE_YET,
    WRITE_SEGMENTS_MAX,
    Write,
    WriteQueue,
    finish_super_packet,
    write_queue_clear,
)
from flannel_udp._fastpath.datapath cimport PeerState, lease_expired, state_of
from flannel_udp._fastpath.drops cimport LEASE_EXPIRED, count_drops, count_forwarded
from flannel_udp._fastpath.refusal cimport reason_of_errno
from flannel_udp._fastpath.routes cimport FIRST_PEER
from flannel_udp._fastpath.sockets cimport iovec
from flannel_udp._fastpath.sysio cimport tun_write
from flannel_udp._fastpath.wire cimport VirtioNetHeader


cdef void deliver(Datapath *dp) noexcept nogil:
    cdef WriteQueue *queue = &dp.write_queue
    cdef uint32_t i
    if queue.n and lease_expired(dp):
        for i in range(queue.n):
            count_drops(&dp.in_counters, LEASE_EXPIRED, queue.writes[i].n)
    else:
        write_all(dp)
    write_queue_clear(queue)


cdef inline void write_all(Datapath *dp) noexcept nogil:
    cdef iovec pieces[1 + WRITE_SEGMENTS_MAX]
    cdef WriteQueue *queue = &dp.write_queue
    cdef uint32_t i
    cdef int n_pieces, written
    for i in range(queue.n):
        n_pieces = gather(dp, &queue.writes[i], pieces)
        written = tun_write(dp, pieces, n_pieces)
        if written >= 0:
            count_written(dp, &queue.writes[i])
        else:
            count_drops(&dp.in_counters, reason_of_errno(-written), queue.writes[i].n)


cdef inline int gather(Datapath *dp, Write *write, iovec *pieces) noexcept nogil:
    """Make a write the pieces of memory that its bytes lie in, the virtio-net header in front; return how many.

    That header goes right in front of the packet: over the receive buffer's headroom or over the packet that came
    before it, which was written before it, too.
    """
    cdef VirtioNetHeader vnet
    cdef int n = 1
    cdef uint16_t piece = write.first_piece
    memset(&vnet, 0, sizeof(vnet))          # one whole packet, checksums already in it
    if write.n > 1:
        finish_super_packet(write, &vnet)
    pieces[0].iov_base = write.packet.data - dp.vnet_bytes
    pieces[0].iov_len = write.packet.len + dp.vnet_bytes
    memcpy(pieces[0].iov_base, &vnet, dp.vnet_bytes)
    while piece != NONE_YET:
        pieces[n].iov_base = dp.write_queue.pieces[piece].data
        pieces[n].iov_len = dp.write_queue.pieces[piece].len
        n += 1
        piece = dp.write_queue.pieces[piece].next
    return n


cdef inline void count_written(Datapath *dp, const Write *write) noexcept nogil:
    cdef uint32_t n_bytes = write.packet.len
    cdef PeerState *peer
    if write.n > 1:
        n_bytes = write.n * write.header_len + write.payload_len
    count_forwarded(&dp.in_counters, write.n, n_bytes)
    if write.packet.next_hop >= FIRST_PEER:
        peer = state_of(dp, write.packet.next_hop)
        peer.packets_in += write.n
        peer.bytes_in += n_bytes
