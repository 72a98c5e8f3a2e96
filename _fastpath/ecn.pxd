"""The outer TOS byte: congestion marks cross the tunnel both ways (RFC 6040), DSCP outward at most (RFC 2983)."""

from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.string cimport memcpy

from flannel_udp._fastpath.checksum cimport patch_checksum
from flannel_udp._fastpath.wire cimport Ipv4Header, Ipv6Header, be16, htonl, ntohl

cdef enum:
    ECN_MASK = 3
    NOT_ECT = 0                     # RFC 3168 section 5
    ECT_1 = 1
    ECT_0 = 2
    CE = 3
    DSCP_INHERIT = -1


# How the outer TOS is made of the inner one: ECN is always copied (RFC 6040 section 4.1, normal mode).
cdef struct OuterTos:
    uint8_t copied              # bits that are the inner one's
    uint8_t fixed               # the others


cdef inline OuterTos outer_tos_of(int32_t dscp) noexcept nogil:
    """Fix the outer DSCP, or have the inner one copied (DSCP_INHERIT)."""
    cdef OuterTos rule
    rule.copied = 0xff if dscp == DSCP_INHERIT else ECN_MASK
    rule.fixed = 0 if dscp == DSCP_INHERIT else <uint8_t> (dscp << 2)
    return rule


cdef inline uint8_t outer_tos(uint8_t inner_tos, OuterTos rule) noexcept nogil:
    """Return the outer TOS byte, or traffic class, for an inner one."""
    return (inner_tos & rule.copied) | rule.fixed


cdef inline uint8_t traffic_class(const Ipv6Header *ip) noexcept nogil:
    """The byte that is IPv4's TOS (RFC 8200 section 7): behind the four bits of the version."""
    return <uint8_t> ((ntohl(ip.version_class_flow) >> 20) & 0xff)


cdef inline bint mark_is_lost(uint8_t inner_tos, uint8_t outer) noexcept nogil:
    """Whether the outer header is marked and the inner one cannot be: it must be dropped (RFC 6040 section 4.2)."""
    return outer & <uint8_t> ECN_MASK == CE and inner_tos & <uint8_t> ECN_MASK == NOT_ECT


cdef inline bint is_marked_anew(uint8_t inner_tos, uint8_t outer) noexcept nogil:
    """Whether the outer header's mark is to be the inner one's (RFC 6040 section 4.2, figure 4)."""
    cdef uint8_t inner_ecn = inner_tos & <uint8_t> ECN_MASK
    cdef uint8_t outer_ecn = outer & <uint8_t> ECN_MASK
    if outer_ecn == NOT_ECT or outer_ecn == inner_ecn or inner_ecn == CE:
        return False
    return outer_ecn == CE or (outer_ecn == ECT_1 and inner_ecn == ECT_0)


cdef inline bint take_over_ecn(Ipv4Header *ip, uint8_t outer) noexcept nogil:
    """Carry the outer header's mark into the inner one; False: the packet must be dropped."""
    cdef be16 old_word = 0
    cdef be16 new_word = 0
    if not is_marked_anew(ip.tos, outer):
        return True
    if mark_is_lost(ip.tos, outer):
        return False
    memcpy(&old_word, &ip.version_ihl, 2)
    ip.tos = (ip.tos & <uint8_t> (~ECN_MASK & 0xff)) | (outer & <uint8_t> ECN_MASK)
    memcpy(&new_word, &ip.version_ihl, 2)
    ip.checksum = patch_checksum(ip.checksum, old_word, new_word)
    return True


cdef inline bint take_over_ecn6(Ipv6Header *ip, uint8_t outer) noexcept nogil:
    """Likewise of IPv6, whose header has no checksum."""
    cdef uint8_t inner = traffic_class(ip)
    if not is_marked_anew(inner, outer):
        return True
    if mark_is_lost(inner, outer):
        return False
    ip.version_class_flow &= ~htonl(<uint32_t> ECN_MASK << 20)
    ip.version_class_flow |= htonl(<uint32_t> (outer & <uint8_t> ECN_MASK) << 20)
    return True
