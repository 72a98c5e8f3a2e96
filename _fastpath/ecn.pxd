"""The outer TOS byte: congestion marks cross the tunnel both ways (RFC 6040), DSCP outward only (RFC 2983, pipe)."""

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


cdef inline uint8_t outer_tos(const Ipv4Header *ip, int32_t dscp) noexcept nogil:
    """The outer TOS of an inner packet: ECN copied (RFC 6040 section 4.1, normal mode), DSCP copied or `dscp`."""
    if dscp == DSCP_INHERIT:
        return ip.tos
    return <uint8_t> ((dscp << 2) | (ip.tos & ECN_MASK))


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
