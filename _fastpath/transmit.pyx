"""The send queue goes out to the underlay: one message a run, one system call for as many as the kernel takes.

A run that the kernel refused is judged by `refusal`, and what that says is done; the others go on.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from flannel_udp._fastpath.answer cimport answer_sender
from flannel_udp._fastpath.atomics cimport load_word
from flannel_udp._fastpath.capture cimport capture_run
from flannel_udp._fastpath.datapath cimport LEASE_ASKED_EVERY, PeerState, lease_expired, state_of
from flannel_udp._fastpath.drops cimport KEEP, LEASE_EXPIRED, TOO_BIG, DropReason, count_drops, count_forwarded
from flannel_udp._fastpath.encapsulation cimport heading_bytes
from flannel_udp._fastpath.family cimport FAMILY_6
from flannel_udp._fastpath.outer_address cimport name_outer_end, write_address
from flannel_udp._fastpath.packet cimport Packet
from flannel_udp._fastpath.pathmtu cimport exceeds_path_mtu, is_probe, keep_path_mtu, learn_path_mtu
from flannel_udp._fastpath.refusal cimport FIT_TO_PATH, SEND_SINGLY, STOP_SEGMENTING, Refusal, classify_send
from flannel_udp._fastpath.segmenting cimport note_run_refused, note_run_taken
from flannel_udp._fastpath.sendqueue cimport (
    OUTER_TOS,
    RUNS_MAX,
    TO_FRAGMENT,
    Run,
    SendQueue,
    queue_clear,
)
from flannel_udp._fastpath.sockets cimport (
    CMSG_DATA,
    CMSG_LEN,
    CMSG_SPACE,
    IP_PMTUDISC_DO,
    IP_PMTUDISC_DONT,
    IP_TOS,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPV6_TCLASS,
    SOL_UDP,
    UDP_SEGMENT,
    Envelope,
    cmsghdr,
    fill_in,
    mmsghdr,
)
from flannel_udp._fastpath.sysio cimport send_asking, set_path_mtu_discovery, udp_send
from flannel_udp._fastpath.wire cimport DONT_FRAGMENT, IPV6_MTU_MIN, Ipv4Header, ntohs

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
            if lane_of(dp, &queue.runs[i]) == lane:
                in_turn[n] = &queue.runs[i]
                address_message(dp, &messages[n], &envelopes[n], in_turn[n])
                n += 1
        send_lane(dp, lane, messages, in_turn, n)


cdef inline uint64_t lanes_in_use(const Datapath *dp) noexcept nogil:
    """One bit for each lane that a queued run takes."""
    cdef uint64_t lanes = 0
    cdef uint32_t i
    for i in range(dp.send_queue.n):
        lanes |= <uint64_t> 1 << lane_of(dp, &dp.send_queue.runs[i])
    return lanes


cdef inline void address_message(
    const Datapath *dp, mmsghdr *message, Envelope *envelope, const Run *run
) noexcept nogil:
    """Make a run one message: one datagram, or several that the kernel cuts."""
    cdef uint16_t segment = <uint16_t> run.segment_len
    cdef int tos = run.how & OUTER_TOS
    fill_in(message, envelope, run.data, run.n_bytes)
    message.msg_hdr.msg_namelen = write_address(dp, run.next_hop, &envelope.address)
    message.msg_hdr.msg_controllen = 0
    if run.n > 1:
        add_control(message, SOL_UDP, UDP_SEGMENT, &segment, sizeof(segment))
    if tos and dp.family == FAMILY_6:
        add_control(message, IPPROTO_IPV6, IPV6_TCLASS, &tos, sizeof(tos))
    elif tos:
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
                count_lost(dp, runs[done], LEASE_EXPIRED, runs[done].n)
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
    cdef uint32_t heading = heading_bytes(dp.encapsulation)
    cdef uint32_t inner_bytes = run.n_bytes - run.n * heading
    if run.n > 1:
        note_run_taken(dp, peer)
    count_forwarded(&dp.out_counters, run.n, inner_bytes)
    if run.segment_len - heading > peer.longest_out:
        note_longest(dp, peer, run)
    peer.packets_out += run.n
    peer.bytes_out += inner_bytes
    if dp.ring != NULL:
        capture_run(dp, run, lane_of(dp, run), KEEP, run.n)


cdef inline void view_first(Datapath *dp, const Run *run, Packet *packet) noexcept nogil:
    """Let `packet` be the first inner packet of a run."""
    packet.data = run.data + heading_bytes(dp.encapsulation)
    packet.len = min(run.segment_len, run.n_bytes) - heading_bytes(dp.encapsulation)
    packet.next_hop = run.next_hop
    name_outer_end(dp, dp.family, packet)


cdef void note_longest(Datapath *dp, PeerState *peer, const Run *run) noexcept nogil:
    """Tell the control plane how long packets to the peer are, for it to ask whether the path carries them."""
    cdef Packet first
    view_first(dp, run, &first)
    if not is_probe(&first):
        peer.longest_out = first.len


cdef void count_lost(Datapath *dp, const Run *run, DropReason reason, uint32_t n) noexcept nogil:
    """Count the first `n` packets of a run as dropped."""
    cdef Packet packet
    view_first(dp, run, &packet)
    count_drops(&dp.out_counters, reason, n, &packet)
    if dp.ring != NULL:
        capture_run(dp, run, lane_of(dp, run), reason, n)


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
        count_lost(dp, run, refusal.reason, run.n)
        state_of(dp, run.next_hop).refused_out += run.n


cdef void send_singly(Datapath *dp, const Run *run) noexcept nogil:
    """Send each packet of a run as a run of its own."""
    cdef Run single = run[0]
    cdef uint32_t left = run.n_bytes
    cdef uint32_t i
    cdef int sent
    single.n = 1
    for i in range(run.n):
        if i % LEASE_ASKED_EVERY == 0 and lease_expired(dp):
            single.n_bytes = left       # the others with it
            count_lost(dp, &single, LEASE_EXPIRED, run.n - i)
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
    sent = udp_send(dp, lane_of(dp, run), &message, 1)
    if sent > 0:
        count_sent(dp, run)
    return sent


cdef inline bint goes_any_way(const Datapath *dp, const Packet *packet) noexcept nogil:
    """Whether no path is too narrow to ask: an IPv6 link carries 1,280 bytes (RFC 2473 section 7.1, RFC 8200 5)."""
    return dp.family == FAMILY_6 and packet.len <= IPV6_MTU_MIN


cdef inline bint may_be_fragmented(const Datapath *dp, const Packet *packet) noexcept nogil:
    """Whether the sender lets a router cut it: of IPv6 none does (RFC 8200 section 5)."""
    return dp.family != FAMILY_6 and not ntohs((<const Ipv4Header *> packet.data).frag) & DONT_FRAGMENT


cdef bint learn_less(Datapath *dp, const Packet *packet) noexcept nogil:
    """Whether what the path carries is known, or the kernel says it, and it is less than the refused packet."""
    return exceeds_path_mtu(dp, packet.next_hop, packet.len) or (
        learn_path_mtu(dp, packet.next_hop) and exceeds_path_mtu(dp, packet.next_hop, packet.len)
    )


cdef bint has_left(Datapath *dp, const Run *run) noexcept nogil:
    """Whether the refused packet is sent after all; else what its lane says that its path carries is kept."""
    cdef uint64_t epoch = load_word(&dp.path_epoch)
    cdef mmsghdr message
    cdef Envelope envelope
    cdef uint32_t mtu = 0
    address_message(dp, &message, &envelope, run)
    if send_asking(dp, lane_of(dp, run), &message, &mtu) > 0:
        count_sent(dp, run)
        return True
    if mtu != 0:
        keep_path_mtu(dp, run.next_hop, mtu, epoch)
    return False


cdef void fit_to_path(Datapath *dp, const Run *run) noexcept nogil:
    """Let one packet that is too big for the path be fragmented, or tell its sender what would fit.

    What would is for RFC 1191 and RFC 8201 to say.
    """
    cdef Packet packet
    cdef uint32_t lane
    cdef int sent
    view_first(dp, run, &packet)
    if not goes_any_way(dp, &packet):
        if not learn_less(dp, &packet) and has_left(dp, run):
            return
        if not may_be_fragmented(dp, &packet):
            # Never told is the size that was just refused: the sender would go on with it for ever.
            if exceeds_path_mtu(dp, run.next_hop, packet.len):
                answer_sender(dp, &packet, TOO_BIG)
            count_lost(dp, run, TOO_BIG, 1)
            return
    lane = lane_of(dp, run)
    set_path_mtu_discovery(dp, lane, IP_PMTUDISC_DONT)
    sent = send_run(dp, run)
    set_path_mtu_discovery(dp, lane, IP_PMTUDISC_DO)
    if sent <= 0:
        count_lost(dp, run, classify_send(-sent, 1).reason, 1)
