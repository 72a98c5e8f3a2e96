"""What the C library and the kernel call things: declarations for the modules that make system calls."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from flannel_udp._fastpath.wire cimport be16, be32

cdef extern from "<sys/types.h>" nogil:
    ctypedef long ssize_t

cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t writev(int fd, const iovec *pieces, int n)

cdef extern from "<netinet/in.h>" nogil:
    cdef enum:
        AF_INET
        AF_INET6
        IPPROTO_IP
        IPPROTO_IPV6
        IP_TOS
        IP_MTU
        IP_MTU_DISCOVER
        IP_PMTUDISC_DONT        # IPV6_PMTUDISC_DONT and IPV6_PMTUDISC_DO have the same values
        IP_PMTUDISC_DO
        IP_RECVERR
        IPV6_TCLASS
        IPV6_MTU
        IPV6_MTU_DISCOVER
        IPV6_RECVERR
    cdef struct in_addr:
        be32 s_addr
    cdef struct sockaddr_in:
        uint16_t sin_family
        be16 sin_port
        in_addr sin_addr
    cdef struct in6_addr:
        uint8_t s6_addr[16]
    cdef struct sockaddr_in6:
        uint16_t sin6_family
        be16 sin6_port
        uint32_t sin6_flowinfo
        in6_addr sin6_addr
        uint32_t sin6_scope_id
    cdef struct sockaddr:
        pass

cdef extern from "<sys/socket.h>" nogil:
    cdef enum:
        MSG_DONTWAIT
        MSG_ERRQUEUE
        SOCK_DGRAM
        SOCK_CLOEXEC
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
    int socket(int domain, int kind, int protocol)
    int bind(int fd, const sockaddr *own, uint32_t own_bytes)
    int getsockname(int fd, sockaddr *own, uint32_t *own_bytes)
    int connect(int fd, const sockaddr *to, uint32_t to_bytes)
    int getsockopt(int fd, int level, int option, void *value, uint32_t *n_bytes)
    int setsockopt(int fd, int level, int option, const void *value, uint32_t n_bytes)
    ssize_t recvmsg(int fd, msghdr *message, int flags)
    int recvmmsg(int fd, mmsghdr *messages, unsigned int n, int flags, timespec *timeout)
    int sendmmsg(int fd, mmsghdr *messages, unsigned int n, int flags)
    ssize_t sendto(int fd, const void *buffer, size_t n_bytes, int flags, const sockaddr *to, uint32_t to_bytes)

cdef extern from "<linux/errqueue.h>" nogil:
    cdef enum:
        SO_EE_ORIGIN_LOCAL
    cdef struct sock_extended_err:
        uint32_t ee_errno
        uint8_t ee_origin
        uint32_t ee_info            # with EMSGSIZE: the path MTU

cdef extern from "<unistd.h>" nogil:
    int close(int fd)
    ssize_t read(int fd, void *buffer, size_t n_bytes)

cdef extern from "<sys/epoll.h>" nogil:
    cdef enum:
        EPOLLIN
    ctypedef union epoll_data_t:
        int fd
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_wait(int fd, epoll_event *events, int n, int timeout_ms)

cdef enum:
    SOL_UDP = 17
    UDP_SEGMENT = 103           # linux/udp.h: the control message is a u16, the bytes of each datagram
    UDP_GRO = 104               # the control message is an int, likewise
    CONTROL_WORDS = 8           # room for two control messages of one word each

# An address of either family, with its port.
cdef union SocketAddress:
    sockaddr_in v4
    sockaddr_in6 v6

# One message: one address, one piece of memory, its control messages.
cdef struct Envelope:
    SocketAddress address
    iovec piece
    uint64_t control[CONTROL_WORDS]     # words, for the alignment that cmsg(3) asks for


cdef inline void fill_in(mmsghdr *message, Envelope *envelope, void *data, size_t n_bytes) noexcept nogil:
    envelope.piece.iov_base = data
    envelope.piece.iov_len = n_bytes
    message.msg_hdr.msg_name = &envelope.address
    message.msg_hdr.msg_namelen = sizeof(SocketAddress)
    message.msg_hdr.msg_iov = &envelope.piece
    message.msg_hdr.msg_iovlen = 1
    message.msg_hdr.msg_control = envelope.control
    message.msg_hdr.msg_controllen = CONTROL_WORDS * sizeof(uint64_t)
