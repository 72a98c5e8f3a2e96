"""The send queue goes out: one message a run, one system call for all of them, and what to do where that fails."""

from libc cimport errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from flannel_udp._fastpath.answer cimport answer_sender
from flannel_udp._fastpath.datapath cimport PeerState, lease_expired, state_of
from flannel_udp._fastpath.drops cimport LEASE_EXPIRED, TOO_BIG, count_drops, count_forwarded, reason_of_errno
from flannel_udp._fastpath.encap_udp cimport outer_address
from flannel_udp._fastpath.packet cimport Packet
from flannel_udp._fastpath.pathmtu cimport learn_path_mtu
from flannel_udp._fastpath.sendqueue cimport RUNS_MAX, Run, SendQueue, queue_clear
from flannel_udp._fastpath.sockets cimport (
    AF_INET,
    CMSG_DATA,
    CMSG_LEN,
    CMSG_SPACE,
    IP_PMTUDISC_DO,
    IP_PMTUDISC_DONT,
    IP_TOS,
    IPPROTO_IP,
    SOL_UDP,
    UDP_SEGMENT,
    Envelope,
    cmsghdr,
    fill_in,
    mmsghdr,
)
from flannel_udp._fastpath.sysio cimport send_messages, set_path_mtu_discovery
from flannel_udp._fastpath.wire cimport DONT_FRAGMENT, Ipv4Header, ntohs


cdef void transmit(Datapath *dp) noexcept nogil:
    cdef mmsghdr messages[RUNS_MAX]
    cdef Envelope envelopes[RUNS_MAX]
    cdef SendQueue *queue = &dp.send_queue
    cdef uint32_t done = 0
    cdef uint32_t i
    cdef int put
    for i in range(queue.n):
        address_message(dp, &messages[i], &envelopes[i], &queue.runs[i], 0, queue.runs[i].n_bytes)
    if queue.n and lease_expired(dp):
        for i in range(queue.n):
            count_drops(&dp.out_counters, LEASE_EXPIRED, queue.runs[i].n)
        done = queue.n
    while done < queue.n:
        put = send_messages(dp, &messages[done], queue.n - done)
        for i in range(done, done + <uint32_t> max(put, 0)):
            count_sent(dp, &queue.runs[i], queue.runs[i].n, queue.runs[i].n_bytes)
        done += <uint32_t> max(put, 0)
        if put <= 0:
            give_up_on(dp, &queue.runs[done])
            done += 1
    queue_clear(queue)


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


cdef inline void add_control(mmsghdr *message, int level, int kind, const void *value, size_t n_bytes) noexcept nogil:
    """Append a control message; `msg_controllen` says how much is in use."""
    cdef cmsghdr *control = <cmsghdr *> (<uint8_t *> message.msg_hdr.msg_control + message.msg_hdr.msg_controllen)
    control.cmsg_level = level
    control.cmsg_type = kind
    control.cmsg_len = CMSG_LEN(n_bytes)
    memcpy(CMSG_DATA(control), value, n_bytes)
    message.msg_hdr.msg_controllen += CMSG_SPACE(n_bytes)


cdef void count_sent(Datapath *dp, const Run *run, uint32_t n, uint32_t n_bytes) noexcept nogil:
    cdef PeerState *peer = state_of(dp, run.next_hop)
    count_forwarded(&dp.out_counters, n, n_bytes)
    peer.packets_out += n
    peer.bytes_out += n_bytes


cdef void give_up_on(Datapath *dp, const Run *run) noexcept nogil:
    """Do what can still be done for a run that the kernel refused, and count what was lost."""
    cdef int refused = errno.errno
    if run.n > 1 and (refused == errno.EIO or refused == errno.EMSGSIZE or refused == errno.EINVAL):
        # EIO: the route's device cannot cut datagrams, and never will. The others: they are too big for the path
        # (EINVAL before Linux 6.14), which is a matter of each packet.
        if refused == errno.EIO:
            dp.send_queue.packets_max = 1
        send_one_by_one(dp, run)
    elif run.n == 1 and refused == errno.EMSGSIZE:
        send_too_big(dp, run, 0, run.n_bytes)
    else:
        count_drops(&dp.out_counters, reason_of_errno(refused), run.n)


cdef void send_one_by_one(Datapath *dp, const Run *run) noexcept nogil:
    cdef uint32_t offset = 0
    cdef uint32_t n_bytes
    while offset < run.n_bytes:
        n_bytes = min(run.segment_len, run.n_bytes - offset)
        if not send_one(dp, run, offset, n_bytes):
            if errno.errno == errno.EMSGSIZE:
                send_too_big(dp, run, offset, n_bytes)
            else:
                count_drops(&dp.out_counters, reason_of_errno(errno.errno), 1)
        offset += n_bytes


cdef bint send_one(Datapath *dp, const Run *run, uint32_t offset, uint32_t n_bytes) noexcept nogil:
    """Send one packet of a run and count it; False, and errno, where the kernel refuses it."""
    cdef mmsghdr message
    cdef Envelope envelope
    address_message(dp, &message, &envelope, run, offset, n_bytes)
    if send_messages(dp, &message, 1) <= 0:
        return False
    count_sent(dp, run, 1, n_bytes)
    return True


cdef void send_too_big(Datapath *dp, const Run *run, uint32_t offset, uint32_t n_bytes) noexcept nogil:
    """Let a packet that is too big for the path be fragmented, or tell its sender what would fit (RFC 1191)."""
    cdef Packet packet
    cdef bint sent
    packet.data = run.data + offset
    packet.len = n_bytes
    packet.next_hop = run.next_hop
    if ntohs((<const Ipv4Header *> packet.data).frag) & DONT_FRAGMENT:
        if learn_path_mtu(dp, run.next_hop):
            answer_sender(dp, &packet, TOO_BIG)
        count_drops(&dp.out_counters, TOO_BIG, 1)
        return
    set_path_mtu_discovery(dp, IP_PMTUDISC_DONT)
    sent = send_one(dp, run, offset, n_bytes)
    if not sent:
        count_drops(&dp.out_counters, reason_of_errno(errno.errno), 1)
    set_path_mtu_discovery(dp, IP_PMTUDISC_DO)
