"""ICMPv6 answers to packets that cannot go on (RFC 4443)."""

from libc.string cimport memcpy, memset

from flannel_udp._fastpath.checksum cimport finish, sum_bytes
from flannel_udp._fastpath.drops cimport KEEP, OWN_SUBNET, TOO_BIG, TTL_EXPIRED
from flannel_udp._fastpath.family cimport FAMILY_6
from flannel_udp._fastpath.icmp cimport is_told
from flannel_udp._fastpath.ipv6 cimport is_unicast6, parse6
from flannel_udp._fastpath.packet cimport packet_at
from flannel_udp._fastpath.transport cimport Transport, find_transport, sum_pseudo_header_of
from flannel_udp._fastpath.wire cimport (
    IPV4_MAX_BYTES,
    IPV6_HEADER_BYTES,
    IPV6_MTU_MIN,
    PROTOCOL_ICMP6,
    Icmp6Header,
    htonl,
    htons,
)

cdef enum:
    ICMP6_HEADER_BYTES = 8
    TYPE_UNREACHABLE = 1
    CODE_ADDRESS_UNREACHABLE = 3
    TYPE_TOO_BIG = 2
    TYPE_TIME_EXCEEDED = 3      # code 0: hop limit exceeded in transit
    FIRST_INFORMATIONAL = 128   # types below are errors (RFC 4443 section 2.1)
    TYPE_REDIRECT = 137         # RFC 4861: it counts as one of them here
    ANSWER_HOP_LIMIT = 64


cdef bint may_answer(const Packet *packet, const Ipv6Header *ip) noexcept nogil:
    """Whether an ICMPv6 error may be sent about this packet at all: RFC 4443 section 2.4 (e).

    Not about what may be an error itself: neither where the type is not here, nor where nobody can tell the protocol.
    """
    cdef Transport transport = find_transport(FAMILY_6, packet)
    cdef const uint8_t *icmp_type
    if not transport.is_there or not is_unicast6(ip.src) or not is_unicast6(ip.dst):
        return False
    if transport.protocol == PROTOCOL_ICMP6:
        icmp_type = packet_at(packet, transport.start, 1)
        return icmp_type != NULL and icmp_type[0] >= FIRST_INFORMATIONAL and icmp_type[0] != TYPE_REDIRECT
    return True


cdef const Ipv6Header *find_answerable6(const Packet *packet, DropReason reason) noexcept nogil:
    cdef Ipv6Header *ip = NULL
    if not is_told(reason) or parse6(packet, &ip) != KEEP or not may_answer(packet, ip):
        return NULL
    return ip


cdef uint32_t write_icmp6_error(
    uint8_t *answer,
    const Packet *packet,
    const Ipv6Header *original,
    DropReason reason,
    const uint8_t *own_addr,
    uint32_t mtu,
) noexcept nogil:
    cdef Ipv6Header *ip = <Ipv6Header *> answer
    cdef Icmp6Header *icmp = <Icmp6Header *> (answer + IPV6_HEADER_BYTES)
    cdef uint32_t quoted, n_bytes
    quoted = min(packet.len, <uint32_t> (ICMP6_ERROR_MAX_BYTES - IPV6_HEADER_BYTES - ICMP6_HEADER_BYTES))
    n_bytes = ICMP6_HEADER_BYTES + quoted

    memset(answer, 0, IPV6_HEADER_BYTES + ICMP6_HEADER_BYTES)
    ip.version_class_flow = htonl(<uint32_t> 6 << 28)
    ip.payload_len = htons(<unsigned short> n_bytes)
    ip.next_header = PROTOCOL_ICMP6
    ip.hop_limit = ANSWER_HOP_LIMIT
    memcpy(ip.src, own_addr, sizeof(ip.src))
    memcpy(ip.dst, original.src, sizeof(ip.dst))

    if reason == TTL_EXPIRED:
        icmp.type = TYPE_TIME_EXCEEDED
    elif reason == TOO_BIG:
        icmp.type = TYPE_TOO_BIG
        icmp.mtu = htonl(max(mtu, <uint32_t> IPV6_MTU_MIN))
    else:
        icmp.type = TYPE_UNREACHABLE        # code 0: no route
        if reason == OWN_SUBNET:
            icmp.code = CODE_ADDRESS_UNREACHABLE
    memcpy(answer + IPV6_HEADER_BYTES + ICMP6_HEADER_BYTES, packet.data, quoted)
    icmp.checksum = finish(
        sum_bytes(<uint8_t *> icmp, n_bytes, sum_pseudo_header_of(FAMILY_6, answer, PROTOCOL_ICMP6, n_bytes))
    )
    return IPV6_HEADER_BYTES + n_bytes


def answer(bytes packet not None, DropReason reason, bytes own_address not None, uint32_t mtu=0) -> bytes:
    """Return the ICMPv6 packet that answers `packet`, dropped for `reason`; empty where none may be sent. For tests.

    `own_address` has 16 bytes.
    """
    cdef uint8_t[ICMP6_ERROR_MAX_BYTES] buffer
    cdef Packet view
    cdef const Ipv6Header *original
    cdef uint32_t n = 0
    if len(packet) > IPV4_MAX_BYTES or len(own_address) != 16:
        raise ValueError("longer than a packet can be here, or no IPv6 address")
    memset(&view, 0, sizeof(view))
    view.data = <uint8_t *> <const char *> packet
    view.len = <uint32_t> len(packet)
    original = find_answerable6(&view, reason)
    if original != NULL:
        n = write_icmp6_error(buffer, &view, original, reason, <const uint8_t *> <const char *> own_address, mtu)
    return (<char *> buffer)[:n]
