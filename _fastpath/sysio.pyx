"""Every system call of the packet path."""

from libc cimport errno
from libc.stdint cimport uint16_t
from libc.string cimport memset

from flannel_udp._fastpath.datapath cimport PeerCounters, counters_of
from flannel_udp._fastpath.drops cimport DEVICE_DOWN, count_drop, count_forwarded, reason_of_errno
from flannel_udp._fastpath.packet cimport BATCH_MAX, Packet, packet_push, packet_reset
from flannel_udp._fastpath.routes cimport FIRST_PEER
from flannel_udp._fastpath.wire cimport IPV4_MAX_BYTES, be16

cdef extern from "<sys/types.h>" nogil:
    ctypedef long ssize_t

cdef extern from "<unistd.h>" nogil:
    ssize_t read(int fd, void *buffer, size_t n_bytes)
    ssize_t write(int fd, const void *buffer, size_t n_bytes)

cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        void *iov_base
        size_t iov_len

cdef extern from "<netinet/in.h>" nogil:
    cdef enum:
        AF_INET
    cdef struct in_addr:
        be32 s_addr
    cdef struct sockaddr_in:
        uint16_t sin_family
        be16 sin_port
        in_addr sin_addr
    cdef struct sockaddr:
        pass

cdef extern from "<sys/socket.h>" nogil:
    cdef enum:
        MSG_DONTWAIT
    cdef struct msghdr:
        void *msg_name
        uint32_t msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
    cdef struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    struct timespec:
        pass
    int recvmmsg(int fd, mmsghdr *messages, unsigned int n, int flags, timespec *timeout)
    int sendmmsg(int fd, mmsghdr *messages, unsigned int n, int flags)
    ssize_t sendto(int fd, const void *buffer, size_t n_bytes, int flags, const sockaddr *to, uint32_t to_bytes)

cdef extern from "<poll.h>" nogil:
    cdef enum:
        POLLOUT
    cdef struct pollfd:
        int fd
        short events
    int poll(pollfd *fds, unsigned long n, int timeout_ms)

cdef enum:
    FULL_QUEUE_WAIT_MS = 1
    READ_ERRORS_MAX = 16        # that many in a row and the TUN counts as broken


cdef struct Messages:
    # One datagram a message, one piece a datagram.
    mmsghdr headers[BATCH_MAX]
    iovec pieces[BATCH_MAX]
    sockaddr_in addresses[BATCH_MAX]


cdef inline void set_message(Messages *messages, uint32_t i, void *data, size_t n_bytes) noexcept nogil:
    memset(&messages.headers[i], 0, sizeof(mmsghdr))
    messages.pieces[i].iov_base = data
    messages.pieces[i].iov_len = n_bytes
    messages.headers[i].msg_hdr.msg_name = &messages.addresses[i]
    messages.headers[i].msg_hdr.msg_namelen = sizeof(sockaddr_in)
    messages.headers[i].msg_hdr.msg_iov = &messages.pieces[i]
    messages.headers[i].msg_hdr.msg_iovlen = 1


cdef bint wait_until_writable(int fd) noexcept nogil:
    """Give a full queue one millisecond to drain: long enough for a driver, too short to be felt."""
    cdef pollfd watched
    watched.fd = fd
    watched.events = POLLOUT
    return poll(&watched, 1, FULL_QUEUE_WAIT_MS) > 0


cdef void tun_read(Datapath *dp, Batch *batch) noexcept nogil:
    cdef Packet *packet
    cdef ssize_t got
    batch.n = 0
    while batch.n < BATCH_MAX:
        packet = &batch.packets[batch.n]
        packet_reset(packet)
        packet_push(packet, dp.vnet_bytes)
        got = read(dp.tun_fd, packet.data, dp.vnet_bytes + IPV4_MAX_BYTES)
        if got > 0:
            packet.len = <uint32_t> got
            batch.n += 1
            dp.read_errors = 0
            continue
        if got < 0 and errno.errno == errno.EINTR:
            continue
        if got < 0 and errno.errno != errno.EAGAIN:
            # A deleted TUN answers EBADFD for ever; anything else may pass, but must not make us spin.
            dp.read_errors += 1
            if errno.errno == errno.EBADFD or dp.read_errors >= READ_ERRORS_MAX:
                dp.tun_errno = errno.errno
        break


cdef void tun_write(Datapath *dp, Batch *batch) noexcept nogil:
    cdef Packet *packet
    cdef PeerCounters *peer
    cdef uint8_t *header
    cdef ssize_t put
    cdef uint32_t i, inner_len
    for i in range(batch.n):
        packet = &batch.packets[i]
        inner_len = packet.len
        header = packet_push(packet, dp.vnet_bytes)
        memset(header, 0, dp.vnet_bytes)    # one whole packet, checksums already right
        put = write(dp.tun_fd, packet.data, packet.len)
        if put < 0 and errno.errno == errno.EAGAIN and wait_until_writable(dp.tun_fd):
            put = write(dp.tun_fd, packet.data, packet.len)
        if put < 0:
            count_drop(&dp.in_counters, reason_of_errno(errno.errno))
            continue
        count_forwarded(&dp.in_counters, inner_len)
        if packet.next_hop >= FIRST_PEER:
            peer = counters_of(dp, packet.next_hop)
            peer.packets_in += 1
            peer.bytes_in += inner_len


cdef void udp_receive(Datapath *dp, Batch *batch) noexcept nogil:
    cdef Messages messages
    cdef uint32_t i
    cdef int got
    for i in range(<uint32_t> BATCH_MAX):
        packet_reset(&batch.packets[i])
        set_message(&messages, i, batch.packets[i].data, IPV4_MAX_BYTES)
    got = recvmmsg(dp.udp_fd, messages.headers, BATCH_MAX, MSG_DONTWAIT, NULL)
    batch.n = <uint32_t> got if got > 0 else 0
    for i in range(batch.n):
        batch.packets[i].len = messages.headers[i].msg_len
        batch.packets[i].outer_addr = messages.addresses[i].sin_addr.s_addr


cdef void udp_send(Datapath *dp, Batch *batch) noexcept nogil:
    cdef Messages messages
    cdef PeerCounters *peer
    cdef Packet *packet
    cdef uint32_t i
    cdef uint32_t done = 0
    cdef int put
    cdef bint waited = False
    for i in range(batch.n):
        packet = &batch.packets[i]
        set_message(&messages, i, packet.data, packet.len)
        messages.addresses[i].sin_family = AF_INET
        messages.addresses[i].sin_port = dp.port
        messages.addresses[i].sin_addr.s_addr = packet.outer_addr
    while done < batch.n:
        put = sendmmsg(dp.udp_fd, &messages.headers[done], batch.n - done, MSG_DONTWAIT)
        if put <= 0:
            # The error is the first unsent packet's: it is lost, the others are not.
            if errno.errno == errno.EINTR:
                continue
            if errno.errno == errno.EAGAIN and not waited and wait_until_writable(dp.udp_fd):
                waited = True
                continue
            count_drop(&dp.out_counters, reason_of_errno(errno.errno))
            done += 1
            continue
        for i in range(done, done + <uint32_t> put):
            packet = &batch.packets[i]
            count_forwarded(&dp.out_counters, packet.len)
            peer = counters_of(dp, packet.next_hop)
            peer.packets_out += 1
            peer.bytes_out += packet.len
        done += <uint32_t> put


cdef void icmp_send(Datapath *dp, const uint8_t *packet, uint32_t n_bytes, be32 dst) noexcept nogil:
    cdef sockaddr_in to
    memset(&to, 0, sizeof(to))
    to.sin_family = AF_INET
    to.sin_addr.s_addr = dst
    if sendto(dp.icmp_fd, packet, n_bytes, MSG_DONTWAIT, <sockaddr *> &to, sizeof(to)) < 0:
        dp.icmp_counters.failed += 1
    else:
        dp.icmp_counters.sent += 1
