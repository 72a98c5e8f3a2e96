"""The outer TOS byte: congestion marks cross the tunnel both ways (RFC 6040), DSCP outward at most (RFC 2983)."""

from libc.stdint cimport int32_t, uint8_t
from libc.string cimport memcpy

from flannel_udp._fastpath.checksum cimport patch_checksum
from flannel_udp._fastpath.wire cimport Ipv4Header, be16

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


cdef inline uint8_t outer_tos(const Ipv4Header *ip, OuterTos rule) noexcept nogil:
    return (ip.tos & rule.copied) | rule.fixed


cdef inline bint take_over_ecn(Ipv4Header *ip, uint8_t outer) noexcept nogil:
    """Carry the outer header's mark into the inner one (RFC 6040 section 4.2, figure 4); False: it must be dropped."""
    cdef uint8_t inner_ecn = ip.tos & <uint8_t> ECN_MASK
    cdef uint8_t outer_ecn = outer & <uint8_t> ECN_MASK
    cdef be16 old_word = 0
    cdef be16 new_word = 0
    if outer_ecn == NOT_ECT or outer_ecn == inner_ecn or inner_ecn == CE:
        return True
    if outer_ecn == CE and inner_ecn == NOT_ECT:
        return False
    if outer_ecn != CE and not (outer_ecn == ECT_1 and inner_ecn == ECT_0):
        return True
    memcpy(&old_word, &ip.version_ihl, 2)
    ip.tos = (ip.tos & <uint8_t> (~ECN_MASK & 0xff)) | outer_ecn
    memcpy(&new_word, &ip.version_ihl, 2)
    ip.checksum = patch_checksum(ip.checksum, old_word, new_word)
    return True
