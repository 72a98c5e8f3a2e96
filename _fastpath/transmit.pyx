"""The send queue goes out to the underlay: one message a run, one system call for as many as the kernel takes.

A run that the kernel refused is judged by `refusal`, and what that says is done; the others go on.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from flannel_udp._fastpath.answer cimport answer_sender
from flannel_udp._fastpath.datapath cimport LEASE_ASKED_EVERY, PeerState, lane_of, lease_expired, state_of
from flannel_udp._fastpath.drops cimport LEASE_EXPIRED, TOO_BIG, count_drops, count_forwarded
from flannel_udp._fastpath.encap_udp cimport outer_address
from flannel_udp._fastpath.packet cimport Packet
from flannel_udp._fastpath.pathmtu cimport exceeds_path_mtu, learn_path_mtu
from flannel_udp._fastpath.refusal cimport FIT_TO_PATH, SEND_SINGLY, STOP_SEGMENTING, Refusal, classify_send
from flannel_udp._fastpath.segmenting cimport note_run_refused, note_run_taken
from flannel_udp._fastpath.sendqueue cimport OUTER_TOS, RUNS_MAX, TO_FRAGMENT, Run, SendQueue, queue_clear
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
from flannel_udp._fastpath.sysio cimport set_path_mtu_discovery, udp_send
from flannel_udp._fastpath.wire cimport DONT_FRAGMENT, Ipv4Header, ntohs

cdef extern from *:
    int count_trailing_zeros "__builtin_ctzll"(unsigned long long word) noexcept nogil


cdef void transmit(Datapath *dp) noexcept nogil:
    send_all(dp)
    queue_clear(&dp.send_queue)


cdef inline void send_all(Datapath *dp) noexcept nogil:
    """Send the runs, those of one lane after the other's; within a lane in the order in which they were queued."""
    cdef mmsghdr messages[RUNS_MAX]
    cdef Envelope envelopes[RUNS_MAX]
    cdef const Run *in_turn[RUNS_MAX]
    cdef const SendQueue *queue = &dp.send_queue
    cdef uint64_t left = lanes_in_use(dp)
    cdef uint32_t lane, n, i
    while left:
        lane = <uint32_t> count_trailing_zeros(left)
        left &= left - 1
        n = 0
        for i in range(queue.n):
            if lane_of(dp, queue.runs[i].next_hop) == lane:
                in_turn[n] = &queue.runs[i]
                address_message(dp, &messages[n], &envelopes[n], in_turn[n])
                n += 1
        send_lane(dp, lane, messages, in_turn, n)


cdef inline uint64_t lanes_in_use(const Datapath *dp) noexcept nogil:
    """One bit for each lane that a queued run takes."""
    cdef uint64_t lanes = 0
    cdef uint32_t i
    for i in range(dp.send_queue.n):
        lanes |= <uint64_t> 1 << lane_of(dp, dp.send_queue.runs[i].next_hop)
    return lanes


cdef inline void address_message(
    const Datapath *dp, mmsghdr *message, Envelope *envelope, const Run *run
) noexcept nogil:
    """Make a run one message: one datagram, or several that the kernel cuts."""
    cdef uint16_t segment = <uint16_t> run.segment_len
    cdef int tos = run.how & OUTER_TOS
    fill_in(message, envelope, run.data, run.n_bytes)
    envelope.address.sin_family = AF_INET
    envelope.address.sin_port = dp.port
    envelope.address.sin_addr.s_addr = outer_address(dp.table, run.next_hop)
    message.msg_hdr.msg_controllen = 0
    if run.n > 1:
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


cdef inline void send_lane(
    Datapath *dp, uint32_t lane, mmsghdr *messages, const Run **runs, uint32_t n
) noexcept nogil:
    cdef uint32_t start = 0
    cdef uint32_t end
    while start < n:
        end = end_of_alike(runs, start, n)
        if runs[start].how & TO_FRAGMENT:
            set_path_mtu_discovery(dp, lane, IP_PMTUDISC_DONT)
            send_some(dp, lane, messages, runs, start, end)
            set_path_mtu_discovery(dp, lane, IP_PMTUDISC_DO)
        else:
            send_some(dp, lane, messages, runs, start, end)
        start = end


cdef inline uint32_t end_of_alike(const Run **runs, uint32_t start, uint32_t n) noexcept nogil:
    """Where the runs from `start` on end that may all be fragmented, or that all may not."""
    cdef uint32_t end = start + 1
    while end < n and not (runs[end].how ^ runs[start].how) & TO_FRAGMENT:
        end += 1
    return end


cdef inline void send_some(
    Datapath *dp, uint32_t lane, mmsghdr *messages, const Run **runs, uint32_t done, uint32_t end
) noexcept nogil:
    """Send the runs from `done` up to `end`."""
    cdef int sent
    while done < end:
        if lease_expired(dp):
            while done < end:
                count_drops(&dp.out_counters, LEASE_EXPIRED, runs[done].n)
                done += 1
            return
        sent = udp_send(dp, lane, &messages[done], end - done)
        if sent <= 0:
            handle_refusal(dp, runs[done], -sent)
            done += 1
        while sent > 0:
            count_sent(dp, runs[done])
            done += 1
            sent -= 1


cdef inline void count_sent(Datapath *dp, const Run *run) noexcept nogil:
    cdef PeerState *peer = state_of(dp, run.next_hop)
    if run.n > 1:
        note_run_taken(dp, peer)
    count_forwarded(&dp.out_counters, run.n, run.n_bytes)
    peer.packets_out += run.n
    peer.bytes_out += run.n_bytes


cdef void handle_refusal(Datapath *dp, const Run *run, int error) noexcept nogil:
    """Do what helps against the error with which the kernel refused a run; count what is lost."""
    cdef Refusal refusal = classify_send(error, run.n)
    if refusal.remedy == STOP_SEGMENTING:
        note_run_refused(dp, run.next_hop)
        send_singly(dp, run)
    elif refusal.remedy == SEND_SINGLY:
        send_singly(dp, run)
    elif refusal.remedy == FIT_TO_PATH and not run.how & TO_FRAGMENT:
        fit_to_path(dp, run)
    else:
        count_drops(&dp.out_counters, refusal.reason, run.n)


cdef void send_singly(Datapath *dp, const Run *run) noexcept nogil:
    """Send each packet of a run as a run of its own."""
    cdef Run single = run[0]
    cdef uint32_t left = run.n_bytes
    cdef uint32_t i
    cdef int sent
    single.n = 1
    for i in range(run.n):
        if i % LEASE_ASKED_EVERY == 0 and lease_expired(dp):
            count_drops(&dp.out_counters, LEASE_EXPIRED, run.n - i)
            return
        single.n_bytes = min(run.segment_len, left)
        sent = send_run(dp, &single)
        if sent <= 0:
            handle_refusal(dp, &single, -sent)
        single.data += single.n_bytes
        left -= single.n_bytes


cdef int send_run(Datapath *dp, const Run *run) noexcept nogil:
    """Send one run and count it; return 1, or the negated errno where the kernel refused it."""
    cdef mmsghdr message
    cdef Envelope envelope
    cdef int sent
    address_message(dp, &message, &envelope, run)
    sent = udp_send(dp, lane_of(dp, run.next_hop), &message, 1)
    if sent > 0:
        count_sent(dp, run)
    return sent


cdef void fit_to_path(Datapath *dp, const Run *run) noexcept nogil:
    """Let one packet that is too big for the path be fragmented, or tell its sender what would fit (RFC 1191)."""
    cdef Packet packet
    cdef uint32_t lane
    cdef int sent
    cdef bint known = exceeds_path_mtu(dp, run.next_hop, run.n_bytes) or learn_path_mtu(dp, run.next_hop)
    packet.data = run.data
    packet.len = run.n_bytes
    packet.next_hop = run.next_hop
    if ntohs((<const Ipv4Header *> packet.data).frag) & DONT_FRAGMENT:
        if known:
            answer_sender(dp, &packet, TOO_BIG)
        count_drops(&dp.out_counters, TOO_BIG, 1)
        return
    lane = lane_of(dp, run.next_hop)
    set_path_mtu_discovery(dp, lane, IP_PMTUDISC_DONT)
    sent = send_run(dp, run)
    set_path_mtu_discovery(dp, lane, IP_PMTUDISC_DO)
    if sent <= 0:
        count_drops(&dp.out_counters, classify_send(-sent, 1).reason, 1)
