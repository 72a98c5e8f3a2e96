"""Every system call of the packet path."""

from libc cimport errno
from libc.stdint cimport uint32_t
from libc.string cimport memcpy, memset

from flannel_udp._fastpath.clock cimport pause_ns
from flannel_udp._fastpath.datapath cimport (
    ENCAP_IPIP,
    RECEIVE_BYTES,
    RECEIVE_HEADROOM,
    RECEIVE_MAX,
    TUN_BUFFER_BYTES,
    Bundle,
)
from flannel_udp._fastpath.family cimport FAMILY_6
from flannel_udp._fastpath.outer_address cimport write_address
from flannel_udp._fastpath.refusal cimport count_lost_read
from flannel_udp._fastpath.sockets cimport (
    AF_INET,
    AF_INET6,
    CMSG_DATA,
    CMSG_FIRSTHDR,
    CMSG_LEN,
    CMSG_NXTHDR,
    IP_MTU,
    IP_MTU_DISCOVER,
    IP_RECVERR,
    IP_TOS,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPV6_MTU,
    IPV6_MTU_DISCOVER,
    IPV6_RECVERR,
    IPV6_TCLASS,
    MSG_DONTWAIT,
    MSG_ERRQUEUE,
    SOCK_CLOEXEC,
    SOCK_DGRAM,
    SO_EE_ORIGIN_LOCAL,
    SOL_UDP,
    UDP_GRO,
    Envelope,
    SocketAddress,
    bind,
    close,
    cmsghdr,
    connect,
    fill_in,
    getsockname,
    getsockopt,
    iovec,
    msghdr,
    read,
    recvmmsg,
    recvmsg,
    sendmmsg,
    sendto,
    setsockopt,
    sock_extended_err,
    sockaddr,
    sockaddr_in,
    sockaddr_in6,
    socket,
    ssize_t,
    writev,
)

cdef enum:
    READ_ERRORS_MAX = 16        # that many in a row and the TUN counts as broken
    RECEIVE_PAUSE_NS = 1000000
    ERRORS_MAX = 16             # which a lane may have been told meanwhile


cdef bint tun_read(Datapath *dp, VirtioNetHeader *vnet, Packet *packet) noexcept nogil:
    cdef ssize_t got
    while True:
        got = read(dp.tun_fd, dp.tun_buffer, TUN_BUFFER_BYTES)
        dp.calls.tun_reads += 1
        if got > 0:
            break
        if got < 0 and errno.errno == errno.EINTR:
            continue
        if got < 0 and errno.errno == errno.EINVAL:
            if count_lost_read(dp):
                continue
        elif got < 0 and errno.errno != errno.EAGAIN:
            # A deleted TUN answers EBADFD for ever; anything else may pass, but must not make us spin.
            dp.read_errors += 1
            dp.calls.tun_read_errors += 1
            if errno.errno == errno.EBADFD or dp.read_errors >= READ_ERRORS_MAX:
                dp.tun_errno = errno.errno
        return False
    dp.read_errors = 0
    packet.data = dp.tun_buffer + dp.vnet_bytes
    packet.len = <uint32_t> got - dp.vnet_bytes if <uint32_t> got >= dp.vnet_bytes else 0
    if dp.vnet_bytes:
        memcpy(vnet, dp.tun_buffer, sizeof(VirtioNetHeader))    # a size known here is two loads instead of a call
    else:
        memset(vnet, 0, sizeof(VirtioNetHeader))
    return True


cdef int tun_write(Datapath *dp, const iovec *pieces, int n) noexcept nogil:
    cdef ssize_t written = writev(dp.tun_fd, pieces, n)
    dp.calls.tun_writes += 1
    return <int> written if written >= 0 else -errno.errno


cdef int udp_send(Datapath *dp, uint32_t lane, mmsghdr *messages, uint32_t n) noexcept nogil:
    cdef int sent
    while True:
        sent = sendmmsg(dp.lanes[lane], messages, n, MSG_DONTWAIT)
        dp.calls.udp_sends += 1
        if sent >= 0:
            return sent
        if errno.errno == errno.EINTR:
            continue
        if errno.errno == errno.ENOBUFS and dp.encapsulation == ENCAP_IPIP:
            return -errno.EAGAIN        # a raw socket whose buffer is full (linux, net/ipv4/ip_output.c)
        return -errno.errno


cdef void set_path_mtu_discovery(const Datapath *dp, uint32_t lane, int mode) noexcept nogil:
    if dp.family == FAMILY_6:
        setsockopt(dp.lanes[lane], IPPROTO_IPV6, IPV6_MTU_DISCOVER, &mode, sizeof(mode))
    else:
        setsockopt(dp.lanes[lane], IPPROTO_IP, IP_MTU_DISCOVER, &mode, sizeof(mode))


cdef uint32_t query_path_mtu(const Datapath *dp, uint32_t peer) noexcept nogil:
    """Ask by way of a socket that is connected to the peer: only for those the kernel answers (ip(7), IP_MTU).

    From the address and to the port that packets have: rules and the kernel's choice among several ways go by them. Not
    from their port: a connected socket there would get what the peer sends meanwhile.
    """
    cdef SocketAddress own
    cdef SocketAddress there
    cdef bint of_ipv6 = dp.family == FAMILY_6
    cdef int level = IPPROTO_IPV6 if of_ipv6 else IPPROTO_IP
    cdef int option = IPV6_MTU if of_ipv6 else IP_MTU
    cdef int mtu = 0
    cdef uint32_t own_size = sizeof(own)
    cdef uint32_t size = sizeof(mtu)
    cdef uint32_t there_size
    cdef int fd = socket(AF_INET6 if of_ipv6 else AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)
    if fd < 0:
        return 0
    memset(&own, 0, sizeof(own))
    memset(&there, 0, sizeof(there))
    there_size = write_address(dp, peer, &there)
    if getsockname(dp.udp_fd, <sockaddr *> &own, &own_size) == 0:
        own.v4.sin_port = 0                             # where IPv6's is, too
        bind(fd, <const sockaddr *> &own, own_size)     # refused, the kernel chooses the address: better than none
    if connect(fd, <sockaddr *> &there, there_size) < 0 or getsockopt(fd, level, option, &mtu, &size) < 0:
        mtu = 0
    close(fd)
    return <uint32_t> mtu if mtu > 0 else 0


cdef int send_asking(Datapath *dp, uint32_t lane, mmsghdr *message, uint32_t *mtu) noexcept nogil:
    """The kernel says it in the socket's error queue (ip(7), IP_RECVERR), which is there for this one call only.

    Were it always, an ICMP error about one peer would be the next packet's to another.
    """
    cdef int sent
    set_error_queue(dp, lane, 1)
    sent = udp_send(dp, lane, message, 1)
    mtu[0] = told_mtu(dp, lane) if sent == -errno.EMSGSIZE else 0
    set_error_queue(dp, lane, 0)        # which empties it
    return sent


cdef inline void set_error_queue(const Datapath *dp, uint32_t lane, int on) noexcept nogil:
    if dp.family == FAMILY_6:
        setsockopt(dp.lanes[lane], IPPROTO_IPV6, IPV6_RECVERR, &on, sizeof(on))
    else:
        setsockopt(dp.lanes[lane], IPPROTO_IP, IP_RECVERR, &on, sizeof(on))


cdef inline uint32_t told_mtu(const Datapath *dp, uint32_t lane) noexcept nogil:
    """Return the MTU of the error queue's refusal for size, 0 where it has none."""
    cdef mmsghdr message
    cdef Envelope envelope
    cdef cmsghdr *control
    cdef sock_extended_err error
    cdef int _i
    for _i in range(ERRORS_MAX):
        fill_in(&message, &envelope, NULL, 0)
        if recvmsg(dp.lanes[lane], &message.msg_hdr, MSG_ERRQUEUE | MSG_DONTWAIT) < 0:
            return 0
        control = CMSG_FIRSTHDR(&message.msg_hdr)
        if control == NULL or control.cmsg_len < CMSG_LEN(sizeof(error)):
            continue
        memcpy(&error, CMSG_DATA(control), sizeof(error))
        if error.ee_origin == SO_EE_ORIGIN_LOCAL and error.ee_errno == <uint32_t> errno.EMSGSIZE:
            return error.ee_info
    return 0


cdef void learn_own_address(Datapath *dp) noexcept nogil:
    cdef SocketAddress own
    cdef uint32_t size = sizeof(own)
    memset(&own, 0, sizeof(own))
    getsockname(dp.udp_fd, <sockaddr *> &own, &size)
    if own.v4.sin_family == AF_INET6:
        memcpy(dp.outer_addr6, &own.v6.sin6_addr, sizeof(dp.outer_addr6))
    else:
        dp.outer_addr = own.v4.sin_addr.s_addr if own.v4.sin_family == AF_INET else 0


cdef be16 port_of(int fd) noexcept nogil:
    cdef SocketAddress own
    cdef uint32_t size = sizeof(own)
    memset(&own, 0, sizeof(own))
    getsockname(fd, <sockaddr *> &own, &size)
    return own.v4.sin_port                              # where IPv6's is, too


cdef inline uint8_t *receive_buffer(const Datapath *dp, uint32_t i) noexcept nogil:
    return dp.receive_arena + i * <uint32_t> RECEIVE_BYTES + <uint32_t> RECEIVE_HEADROOM


cdef void udp_receive(Datapath *dp) noexcept nogil:
    cdef mmsghdr messages[RECEIVE_MAX]
    cdef Envelope envelopes[RECEIVE_MAX]
    cdef bint of_ipv6 = dp.family == FAMILY_6
    cdef uint32_t i
    cdef int got
    for i in range(dp.receive_n):
        fill_in(&messages[i], &envelopes[i], receive_buffer(dp, i), RECEIVE_BYTES - RECEIVE_HEADROOM)
    got = recvmmsg(dp.udp_fd, messages, dp.receive_n, MSG_DONTWAIT, NULL)
    dp.calls.udp_receives += 1
    if got < 0 and errno.errno != errno.EAGAIN and errno.errno != errno.EINTR:
        # What waits there wakes us again at once: without memory, or forbidden to receive, we would spin.
        dp.calls.udp_receive_errors += 1
        pause_ns(RECEIVE_PAUSE_NS)
    dp.n_bundles = <uint32_t> max(got, 0)
    for i in range(dp.n_bundles):
        dp.bundles[i].data = receive_buffer(dp, i)
        dp.bundles[i].len = messages[i].msg_len
        dp.bundles[i].segment_len = messages[i].msg_len
        if of_ipv6:
            memcpy(dp.bundles[i].outer_addr6, &envelopes[i].address.v6.sin6_addr, sizeof(dp.bundles[i].outer_addr6))
        else:
            dp.bundles[i].outer_addr = envelopes[i].address.v4.sin_addr.s_addr
        dp.bundles[i].outer_tos = 0
        read_controls(&messages[i].msg_hdr, &dp.bundles[i])
    if dp.ring != NULL:
        for i in range(dp.n_bundles):
            dp.bundles[i].outer_port = envelopes[i].address.v4.sin_port     # where IPv6's is, too


cdef inline void read_controls(msghdr *header, Bundle *bundle) noexcept nogil:
    cdef cmsghdr *control = CMSG_FIRSTHDR(header)
    cdef int segment_len = 0
    cdef int traffic_class = 0
    while control != NULL:
        if control.cmsg_level == SOL_UDP and control.cmsg_type == UDP_GRO:
            memcpy(&segment_len, CMSG_DATA(control), sizeof(int))
            if 0 < segment_len < <int> bundle.len:
                bundle.segment_len = <uint32_t> segment_len
        elif control.cmsg_level == IPPROTO_IP and control.cmsg_type == IP_TOS:
            bundle.outer_tos = CMSG_DATA(control)[0]
        elif control.cmsg_level == IPPROTO_IPV6 and control.cmsg_type == IPV6_TCLASS:
            memcpy(&traffic_class, CMSG_DATA(control), sizeof(int))     # RFC 3542 section 6.5
            bundle.outer_tos = <uint8_t> traffic_class
        control = CMSG_NXTHDR(header, control)


cdef void icmp_send(Datapath *dp, const uint8_t *packet, uint32_t n_bytes, be32 dst) noexcept nogil:
    cdef sockaddr_in to
    memset(&to, 0, sizeof(to))
    to.sin_family = AF_INET
    to.sin_addr.s_addr = dst
    send_raw(dp, packet, n_bytes, <const sockaddr *> &to, sizeof(to))


cdef void icmp_send6(Datapath *dp, const uint8_t *packet, uint32_t n_bytes, const uint8_t *dst) noexcept nogil:
    cdef sockaddr_in6 to
    memset(&to, 0, sizeof(to))
    to.sin6_family = AF_INET6
    memcpy(&to.sin6_addr, dst, sizeof(to.sin6_addr))
    send_raw(dp, packet, n_bytes, <const sockaddr *> &to, sizeof(to))


cdef inline void send_raw(
    Datapath *dp, const uint8_t *packet, uint32_t n_bytes, const sockaddr *to, uint32_t to_bytes
) noexcept nogil:
    if sendto(dp.icmp_fd, packet, n_bytes, MSG_DONTWAIT, to, to_bytes) < 0:
        dp.icmp_counters.failed += 1
    else:
        dp.icmp_counters.sent += 1
