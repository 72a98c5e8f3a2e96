"""ICMP answers to packets that cannot go on (RFC 792, RFC 1812 sections 4.3.2 and 5.2.7)."""

from libc.stdint cimport uint16_t
from libc.string cimport memcpy, memset

from flannel_udp._fastpath.checksum cimport finish, sum_bytes
from flannel_udp._fastpath.drops cimport KEEP
from flannel_udp._fastpath.ipv4 cimport header_len, is_unicast, parse
from flannel_udp._fastpath.packet cimport packet_at
from flannel_udp._fastpath.wire cimport (
    FRAG_OFFSET_MASK,
    IPV4_HEADER_BYTES,
    IPV4_MAX_BYTES,
    PROTOCOL_ICMP,
    IcmpHeader,
    Ipv4Header,
    htons,
    ntohl,
    ntohs,
)

cdef enum:
    ICMP_HEADER_BYTES = 8
    TYPE_UNREACHABLE = 3
    CODE_FRAGMENTATION_NEEDED = 4
    TYPE_SOURCE_QUENCH = 4
    TYPE_REDIRECT = 5
    TYPE_TIME_EXCEEDED = 11
    TYPE_PARAMETER_PROBLEM = 12
    # RFC 1812 section 4.3.2.5: errors carry precedence 6, internetwork control; the other TOS bits are the original's.
    PRECEDENCE_INTERNETWORK_CONTROL = 0xc0
    TOS_BITS = 0x1e
    ANSWER_TTL = 64
    # Linux's defaults for a whole host: net.ipv4.icmp_msgs_per_sec, icmp_msgs_burst.
    WHOLE_COST_NS = 1000000
    WHOLE_BURST = 50
    # A hundred times Linux's icmp_ratelimit: many programs in a pod may ask for peers that are gone.
    DESTINATION_COST_NS = 10000000
    DESTINATION_BURST = 10
    TOO_BIG_COST_NS = 1000000
    TOO_BIG_BURST = 50


cdef bint icmp_take_token(IcmpLimiter *limiter, DropReason reason, uint32_t whose, uint64_t now_ns) noexcept nogil:
    cdef uint32_t slot = (ntohl(whose) * <uint32_t> 0x9e3779b1) >> 24
    if reason == TOO_BIG:
        return take_for_destination(&limiter.too_big[slot], whose, now_ns, TOO_BIG_COST_NS, TOO_BIG_BURST)
    # The destination first: what one is refused does not cost the others anything.
    return (
        take_for_destination(&limiter.others[slot], whose, now_ns, DESTINATION_COST_NS, DESTINATION_BURST)
        and take(&limiter.whole, now_ns, WHOLE_COST_NS, WHOLE_BURST)
    )


cdef inline bint take_for_destination(
    DestinationBucket *destination, uint32_t whose, uint64_t now_ns, uint64_t cost_ns, uint32_t burst
) noexcept nogil:
    if destination.whose != whose:
        destination.whose = whose
        destination.bucket.last_ns = 0
        destination.bucket.credit_ns = 0
    return take(&destination.bucket, now_ns, cost_ns, burst)


cdef inline bint take(TokenBucket *bucket, uint64_t now_ns, uint64_t cost_ns, uint32_t burst) noexcept nogil:
    if now_ns > bucket.last_ns:
        bucket.credit_ns = min(bucket.credit_ns + (now_ns - bucket.last_ns), cost_ns * burst)
        bucket.last_ns = now_ns
    if bucket.credit_ns < cost_ns:
        return False
    bucket.credit_ns -= cost_ns
    return True


cdef bint may_answer(const Packet *packet, const Ipv4Header *ip) noexcept nogil:
    """Whether an ICMP error may be sent about this packet at all: RFC 1812 section 4.3.2.7, RFC 1122 section 3.2.2."""
    cdef uint32_t dst = ntohl(ip.dst)
    cdef const uint8_t *icmp_type
    if ntohs(ip.frag) & FRAG_OFFSET_MASK:
        return False
    if not is_unicast(dst) or not is_unicast(ntohl(ip.src)):
        return False
    if ip.protocol == PROTOCOL_ICMP:
        icmp_type = packet_at(packet, header_len(ip), 1)
        if icmp_type == NULL:
            return False        # cut short: it might have been an error
        return icmp_type[0] not in (
            TYPE_UNREACHABLE, TYPE_SOURCE_QUENCH, TYPE_REDIRECT, TYPE_TIME_EXCEEDED, TYPE_PARAMETER_PROBLEM
        )
    return True


cdef const Ipv4Header *find_answerable(const Packet *packet, DropReason reason) noexcept nogil:
    cdef Ipv4Header *ip
    if not is_told(reason):
        return NULL
    if parse(packet, &ip) != KEEP or not may_answer(packet, ip):
        return NULL
    return ip


cdef uint32_t write_icmp_error(
    uint8_t *answer,
    const Packet *packet,
    const Ipv4Header *original,
    DropReason reason,
    uint32_t mtu,
) noexcept nogil:
    cdef Ipv4Header *ip = <Ipv4Header *> answer
    cdef IcmpHeader *icmp = <IcmpHeader *> (answer + IPV4_HEADER_BYTES)
    cdef uint32_t quoted
    quoted = min(packet.len, <uint32_t> (ICMP_ERROR_MAX_BYTES - IPV4_HEADER_BYTES - ICMP_HEADER_BYTES))

    memset(answer, 0, IPV4_HEADER_BYTES + ICMP_HEADER_BYTES)
    if reason == TTL_EXPIRED:
        icmp.type = TYPE_TIME_EXCEEDED      # code 0: in transit
    elif reason == TOO_BIG:
        icmp.type = TYPE_UNREACHABLE
        icmp.code = CODE_FRAGMENTATION_NEEDED
        icmp.next_hop_mtu = htons(<uint16_t> mtu)
    else:
        icmp.type = TYPE_UNREACHABLE        # code 0: network, as flanneld answers
    memcpy(answer + IPV4_HEADER_BYTES + ICMP_HEADER_BYTES, packet.data, quoted)
    icmp.checksum = finish(sum_bytes(<uint8_t *> icmp, ICMP_HEADER_BYTES + quoted, 0))

    ip.version_ihl = 0x45
    ip.tos = (original.tos & <uint8_t> TOS_BITS) | <uint8_t> PRECEDENCE_INTERNETWORK_CONTROL
    ip.total_len = htons(<uint16_t> (IPV4_HEADER_BYTES + ICMP_HEADER_BYTES + quoted))
    ip.ttl = ANSWER_TTL
    ip.protocol = PROTOCOL_ICMP
    ip.dst = original.src
    return IPV4_HEADER_BYTES + ICMP_HEADER_BYTES + quoted


def answer(bytes packet not None, DropReason reason, uint16_t mtu=0) -> bytes:
    """Return the ICMP packet that answers `packet`, dropped for `reason`; empty where none may be sent. For tests."""
    cdef uint8_t[ICMP_ERROR_MAX_BYTES] buffer
    cdef Packet view
    cdef const Ipv4Header *original
    cdef uint32_t n = 0
    if len(packet) > IPV4_MAX_BYTES:
        raise ValueError("longer than an IPv4 packet")
    memset(&view, 0, sizeof(view))
    view.data = <uint8_t *> <const char *> packet
    view.len = <uint32_t> len(packet)
    original = find_answerable(&view, reason)
    if original != NULL:
        n = write_icmp_error(buffer, &view, original, reason, mtu)
    return (<char *> buffer)[:n]
