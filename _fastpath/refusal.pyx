"""Judge an errno: what helps, and as what to count what is lost."""

from libc cimport errno
from libc.string cimport memset

from flannel_udp._fastpath.drops cimport (
    BAD_OFFLOAD,
    DEVICE_DOWN,
    NO_MEMORY,
    QUEUE_FULL,
    REFUSED,
    SYSTEM_ERROR,
    TOO_BIG,
    UNREACHABLE,
    count_drops,
)
from flannel_udp._fastpath.packet cimport Packet
from flannel_udp._fastpath.turn cimport TURN_PACKETS

cdef enum:
    LOST_READS_MAX = 65536      # so many in a row and the TUN counts as broken: no queue holds as many packets


cdef Refusal classify_send(int error, uint32_t n_packets) noexcept nogil:
    cdef Refusal refusal
    refusal.remedy = remedy_of_send(error, n_packets)
    # Routing says EINVAL of a single datagram where the socket's own address is gone, and for a blackhole route.
    refusal.reason = UNREACHABLE if error == errno.EINVAL else reason_of_errno(error)
    return refusal


cdef inline Remedy remedy_of_send(int error, uint32_t n_packets) noexcept nogil:
    if n_packets == 1:
        return FIT_TO_PATH if error == errno.EMSGSIZE else DROP
    if error == errno.EIO:
        return STOP_SEGMENTING      # no checksum offload, or IPsec (linux, net/ipv4/udp.c, udp_send_skb)
    if error == errno.EMSGSIZE or error == errno.EINVAL:
        return SEND_SINGLY          # EINVAL before Linux 6.14
    return DROP


cdef Refusal classify_write(int error, uint32_t n_packets) noexcept nogil:
    cdef Refusal refusal
    refusal.remedy = remedy_of_write(error, n_packets)
    refusal.reason = reason_of_errno(error)
    return refusal


cdef inline Remedy remedy_of_write(int error, uint32_t n_packets) noexcept nogil:
    if n_packets == 1:
        return DROP
    if error == errno.EINVAL:
        return STOP_JOINING         # it dislikes the virtio-net header (linux/virtio_net.h, virtio_net_hdr_to_skb)
    if error == errno.ENOMEM or error == errno.ENOBUFS:
        return WRITE_SINGLY
    return DROP


cdef inline DropReason reason_of_errno(int error) noexcept nogil:
    if error == errno.EAGAIN:
        return QUEUE_FULL
    if error == errno.EMSGSIZE:
        return TOO_BIG
    if error == errno.ENETUNREACH or error == errno.EHOSTUNREACH:
        return UNREACHABLE
    if error == errno.EPERM or error == errno.EACCES:
        return REFUSED
    if error == errno.ENOBUFS or error == errno.ENOMEM:
        return NO_MEMORY
    # A TUN that is down answers EIO, one that was deleted EBADFD (linux, drivers/net/tun.c).
    if error == errno.EIO or error == errno.EBADFD or error == errno.ENETDOWN or error == errno.ENODEV:
        return DEVICE_DOWN
    return SYSTEM_ERROR


cdef bint count_lost_read(Datapath *dp) noexcept nogil:
    """Count it: where no virtio-net header fits a packet the kernel takes it from the queue all the same.

    That costs the packet, not the TUN (linux, drivers/net/tun.c, tun_put_user). A deleted one, and a queue that was
    detached, say EBADFD. One that took nothing from its queue and said EINVAL for ever would not hold up the other
    direction, which has its turn after a turn's worth in a row; and it would be given up in the end: any other answer,
    EAGAIN where the queue is empty, say, ends a row.
    """
    cdef Packet unknown
    memset(&unknown, 0, sizeof(unknown))
    count_drops(&dp.out_counters, BAD_OFFLOAD, 1, &unknown)
    dp.calls.tun_read_errors += 1
    if dp.calls.tun_reads != dp.last_lost_read + 1:
        dp.lost_reads = 0
    dp.lost_reads += 1
    dp.last_lost_read = dp.calls.tun_reads
    if dp.lost_reads >= <uint32_t> LOST_READS_MAX:
        dp.tun_errno = errno.EINVAL
        dp.lost_reads = 0           # the next one's row is its own
    return dp.lost_reads % <uint32_t> TURN_PACKETS != 0
