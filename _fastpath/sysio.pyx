"""Every system call of the packet path."""

from libc cimport errno
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from flannel_udp._fastpath.coalesce cimport (
    NONE_YET,
    WRITE_SEGMENTS_MAX,
    Write,
    finish_super_packet,
    write_queue_clear,
)
from flannel_udp._fastpath.datapath cimport RECEIVE_BYTES, RECEIVE_MAX, Bundle, PeerCounters, counters_of
from flannel_udp._fastpath.drops cimport count_drops, count_forwarded, reason_of_errno
from flannel_udp._fastpath.encap_udp cimport outer_address
from flannel_udp._fastpath.routes cimport FIRST_PEER
from flannel_udp._fastpath.sendqueue cimport RUNS_MAX, Run, SendQueue, queue_clear
from flannel_udp._fastpath.wire cimport IPV4_MAX_BYTES, be16

cdef extern from "<sys/types.h>" nogil:
    ctypedef long ssize_t

cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t readv(int fd, const iovec *pieces, int n)
    ssize_t writev(int fd, const iovec *pieces, int n)

cdef extern from "<netinet/in.h>" nogil:
    cdef enum:
        AF_INET
        IPPROTO_IP
        IP_TOS
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
    cdef struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    cdef struct msghdr:
        void *msg_name
        uint32_t msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
    cdef struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    struct timespec:
        pass
    cmsghdr *CMSG_FIRSTHDR(msghdr *message)
    cmsghdr *CMSG_NXTHDR(msghdr *message, cmsghdr *control)
    unsigned char *CMSG_DATA(cmsghdr *control)
    size_t CMSG_SPACE(size_t n_bytes)
    size_t CMSG_LEN(size_t n_bytes)
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
    SOL_UDP = 17
    UDP_SEGMENT = 103           # linux/udp.h: the control message is a u16, the bytes of each datagram
    UDP_GRO = 104               # the control message is an int, likewise
    CONTROL_WORDS = 8           # room for two control messages of one word each
    FULL_QUEUE_WAIT_MS = 1
    READ_ERRORS_MAX = 16        # that many in a row and the TUN counts as broken


# One message: one address, one piece of memory, its control messages.
cdef struct Envelope:
    sockaddr_in address
    iovec piece
    uint64_t control[CONTROL_WORDS]     # words, for the alignment that cmsg(3) asks for


cdef inline void fill_in(mmsghdr *message, Envelope *envelope, void *data, size_t n_bytes) noexcept nogil:
    envelope.piece.iov_base = data
    envelope.piece.iov_len = n_bytes
    message.msg_hdr.msg_name = &envelope.address
    message.msg_hdr.msg_namelen = sizeof(sockaddr_in)
    message.msg_hdr.msg_iov = &envelope.piece
    message.msg_hdr.msg_iovlen = 1
    message.msg_hdr.msg_control = envelope.control
    message.msg_hdr.msg_controllen = CONTROL_WORDS * sizeof(uint64_t)


cdef bint wait_until_writable(int fd) noexcept nogil:
    """Give a full queue one millisecond to drain: long enough for a driver, too short to be felt."""
    cdef pollfd watched
    watched.fd = fd
    watched.events = POLLOUT
    return poll(&watched, 1, FULL_QUEUE_WAIT_MS) > 0


cdef bint tun_read(Datapath *dp, VirtioNetHeader *vnet, Packet *packet) noexcept nogil:
    cdef iovec pieces[2]
    cdef uint32_t skipped = 0 if dp.vnet_bytes else 1
    cdef ssize_t got
    memset(vnet, 0, sizeof(VirtioNetHeader))
    pieces[0].iov_base = vnet
    pieces[0].iov_len = dp.vnet_bytes
    pieces[1].iov_base = dp.tun_buffer
    pieces[1].iov_len = IPV4_MAX_BYTES
    while True:
        got = readv(dp.tun_fd, &pieces[skipped], <int> (2 - skipped))
        dp.calls.tun_reads += 1
        if got > 0:
            break
        if got < 0 and errno.errno == errno.EINTR:
            continue
        if got < 0 and errno.errno != errno.EAGAIN:
            # A deleted TUN answers EBADFD for ever; anything else may pass, but must not make us spin.
            dp.read_errors += 1
            if errno.errno == errno.EBADFD or dp.read_errors >= READ_ERRORS_MAX:
                dp.tun_errno = errno.errno
        return False
    dp.read_errors = 0
    packet.data = dp.tun_buffer
    packet.len = <uint32_t> got - dp.vnet_bytes if <uint32_t> got >= dp.vnet_bytes else 0
    return True


cdef inline void add_control(mmsghdr *message, int level, int kind, const void *value, size_t n_bytes) noexcept nogil:
    """Append a control message; `msg_controllen` says how much is in use."""
    cdef cmsghdr *control = <cmsghdr *> (<uint8_t *> message.msg_hdr.msg_control + message.msg_hdr.msg_controllen)
    control.cmsg_level = level
    control.cmsg_type = kind
    control.cmsg_len = CMSG_LEN(n_bytes)
    memcpy(CMSG_DATA(control), value, n_bytes)
    message.msg_hdr.msg_controllen += CMSG_SPACE(n_bytes)


cdef inline void address_message(
    const Datapath *dp, mmsghdr *message, Envelope *envelope, const Run *run, uint32_t offset, uint32_t n_bytes
) noexcept nogil:
    """Make a message of `n_bytes` of a run from `offset` on: one datagram, or several that the kernel cuts."""
    cdef uint16_t segment = <uint16_t> run.segment_len
    cdef int tos = run.tos
    fill_in(message, envelope, run.data + offset, n_bytes)
    envelope.address.sin_family = AF_INET
    envelope.address.sin_port = dp.port
    envelope.address.sin_addr.s_addr = outer_address(dp.table, run.next_hop)
    message.msg_hdr.msg_controllen = 0
    if n_bytes > run.segment_len:
        add_control(message, SOL_UDP, UDP_SEGMENT, &segment, sizeof(segment))
    if tos:
        add_control(message, IPPROTO_IP, IP_TOS, &tos, sizeof(tos))
    if message.msg_hdr.msg_controllen == 0:
        message.msg_hdr.msg_control = NULL


cdef void count_sent(Datapath *dp, const Run *run, uint32_t n, uint32_t n_bytes) noexcept nogil:
    cdef PeerCounters *peer = counters_of(dp, run.next_hop)
    count_forwarded(&dp.out_counters, n, n_bytes)
    peer.packets_out += n
    peer.bytes_out += n_bytes


cdef void udp_send(Datapath *dp) noexcept nogil:
    cdef mmsghdr messages[RUNS_MAX]
    cdef Envelope envelopes[RUNS_MAX]
    cdef SendQueue *queue = &dp.send_queue
    cdef uint32_t done = 0
    cdef uint32_t i
    cdef int put
    for i in range(queue.n):
        address_message(dp, &messages[i], &envelopes[i], &queue.runs[i], 0, queue.runs[i].n_bytes)
    while done < queue.n:
        put = send_messages(dp, &messages[done], queue.n - done)
        for i in range(done, done + <uint32_t> max(put, 0)):
            count_sent(dp, &queue.runs[i], queue.runs[i].n, queue.runs[i].n_bytes)
        done += <uint32_t> max(put, 0)
        if put <= 0:
            give_up_on(dp, &queue.runs[done])
            done += 1
    queue_clear(queue)


cdef int send_messages(Datapath *dp, mmsghdr *messages, uint32_t n) noexcept nogil:
    """Send as many messages as go, waiting once for a full socket; 0 or less, and errno, when the first does not."""
    cdef int put = sendmmsg(dp.udp_fd, messages, n, MSG_DONTWAIT)
    dp.calls.udp_sends += 1
    while put < 0 and errno.errno == errno.EINTR:
        put = sendmmsg(dp.udp_fd, messages, n, MSG_DONTWAIT)
    if put < 0 and errno.errno == errno.EAGAIN and wait_until_writable(dp.udp_fd):
        put = sendmmsg(dp.udp_fd, messages, n, MSG_DONTWAIT)
        dp.calls.udp_sends += 1
    return put


cdef void give_up_on(Datapath *dp, const Run *run) noexcept nogil:
    """Count a run that could not be sent; where the device cannot cut it (EIO), send its packets one by one instead."""
    cdef mmsghdr message
    cdef Envelope envelope
    cdef uint32_t offset = 0
    cdef uint32_t n_bytes
    if run.n == 1 or errno.errno != errno.EIO:
        count_drops(&dp.out_counters, reason_of_errno(errno.errno), run.n)
        return
    dp.send_queue.packets_max = 1
    while offset < run.n_bytes:
        n_bytes = min(run.segment_len, run.n_bytes - offset)
        address_message(dp, &message, &envelope, run, offset, n_bytes)
        if send_messages(dp, &message, 1) > 0:
            count_sent(dp, run, 1, n_bytes)
        else:
            count_drops(&dp.out_counters, reason_of_errno(errno.errno), 1)
        offset += n_bytes


cdef void udp_receive(Datapath *dp) noexcept nogil:
    cdef mmsghdr messages[RECEIVE_MAX]
    cdef Envelope envelopes[RECEIVE_MAX]
    cdef uint32_t i
    cdef int got
    for i in range(<uint32_t> RECEIVE_MAX):
        fill_in(&messages[i], &envelopes[i], dp.receive_arena + i * <uint32_t> RECEIVE_BYTES, RECEIVE_BYTES)
    got = recvmmsg(dp.udp_fd, messages, RECEIVE_MAX, MSG_DONTWAIT, NULL)
    dp.calls.udp_receives += 1
    dp.n_bundles = <uint32_t> max(got, 0)
    for i in range(dp.n_bundles):
        dp.bundles[i].data = dp.receive_arena + i * <uint32_t> RECEIVE_BYTES
        dp.bundles[i].len = messages[i].msg_len
        dp.bundles[i].segment_len = messages[i].msg_len
        dp.bundles[i].outer_addr = envelopes[i].address.sin_addr.s_addr
        dp.bundles[i].outer_tos = 0
        read_controls(&messages[i].msg_hdr, &dp.bundles[i])


cdef inline void read_controls(msghdr *header, Bundle *bundle) noexcept nogil:
    cdef cmsghdr *control = CMSG_FIRSTHDR(header)
    cdef int segment_len = 0
    while control != NULL:
        if control.cmsg_level == SOL_UDP and control.cmsg_type == UDP_GRO:
            memcpy(&segment_len, CMSG_DATA(control), sizeof(int))
            if 0 < segment_len < <int> bundle.len:
                bundle.segment_len = <uint32_t> segment_len
        elif control.cmsg_level == IPPROTO_IP and control.cmsg_type == IP_TOS:
            bundle.outer_tos = CMSG_DATA(control)[0]
        control = CMSG_NXTHDR(header, control)


cdef void tun_write(Datapath *dp) noexcept nogil:
    cdef iovec pieces[2 + WRITE_SEGMENTS_MAX]
    cdef VirtioNetHeader vnet
    cdef Write *write
    cdef ssize_t put
    cdef uint32_t i
    cdef int n
    cdef uint16_t piece
    for i in range(dp.write_queue.n):
        write = &dp.write_queue.writes[i]
        memset(&vnet, 0, sizeof(vnet))      # one whole packet, checksums already in it
        if write.n > 1:
            finish_super_packet(write, &vnet)
        pieces[0].iov_base = &vnet
        pieces[0].iov_len = dp.vnet_bytes
        pieces[1].iov_base = write.packet.data
        pieces[1].iov_len = write.packet.len
        n = 2
        piece = write.first_piece
        while piece != NONE_YET:
            pieces[n].iov_base = dp.write_queue.pieces[piece].data
            pieces[n].iov_len = dp.write_queue.pieces[piece].len
            n += 1
            piece = dp.write_queue.pieces[piece].next
        put = writev(dp.tun_fd, pieces, n)
        dp.calls.tun_writes += 1
        if put < 0 and errno.errno == errno.EAGAIN and wait_until_writable(dp.tun_fd):
            put = writev(dp.tun_fd, pieces, n)
            dp.calls.tun_writes += 1
        if put < 0:
            count_drops(&dp.in_counters, reason_of_errno(errno.errno), write.n)
        else:
            count_written(dp, write)
    write_queue_clear(&dp.write_queue)


cdef inline void count_written(Datapath *dp, const Write *write) noexcept nogil:
    cdef uint32_t n_bytes = write.packet.len
    cdef PeerCounters *peer
    if write.n > 1:
        n_bytes = write.n * write.header_len + write.payload_len
    count_forwarded(&dp.in_counters, write.n, n_bytes)
    if write.packet.next_hop >= FIRST_PEER:
        peer = counters_of(dp, write.packet.next_hop)
        peer.packets_in += write.n
        peer.bytes_in += n_bytes


cdef void icmp_send(Datapath *dp, const uint8_t *packet, uint32_t n_bytes, be32 dst) noexcept nogil:
    cdef sockaddr_in to
    memset(&to, 0, sizeof(to))
    to.sin_family = AF_INET
    to.sin_addr.s_addr = dst
    if sendto(dp.icmp_fd, packet, n_bytes, MSG_DONTWAIT, <sockaddr *> &to, sizeof(to)) < 0:
        dp.icmp_counters.failed += 1
    else:
        dp.icmp_counters.sent += 1
