"""Answer a dropped packet's sender.

The answer leaves through a raw socket, not through the TUN: the kernel drops a packet that comes in on flannel0 with
one of the host's own addresses as its source (a martian, net/ipv4/fib_frontend.c), which an answer's is.
So a local pod gets it from its bridge, and a remote one by way of flannel0 and its peer.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from flannel_udp._fastpath.clock cimport now_ns
from flannel_udp._fastpath.datapath cimport lease_expired
from flannel_udp._fastpath.drops cimport TOO_BIG
from flannel_udp._fastpath.family cimport FAMILY_6
from flannel_udp._fastpath.icmp cimport ICMP_ERROR_MAX_BYTES, find_answerable, icmp_take_token, write_icmp_error
from flannel_udp._fastpath.icmp6 cimport ICMP6_ERROR_MAX_BYTES, find_answerable6, write_icmp6_error
from flannel_udp._fastpath.outer_address cimport tag_of6
from flannel_udp._fastpath.pathmtu cimport path_mtu
from flannel_udp._fastpath.sysio cimport icmp_send, icmp_send6
from flannel_udp._fastpath.wire cimport Ipv4Header, Ipv6Header


cdef void answer_sender(Datapath *dp, const Packet *packet, DropReason reason) noexcept nogil:
    if dp.icmp_fd < 0:
        return
    if dp.family == FAMILY_6:
        answer6(dp, packet, reason)
    else:
        answer4(dp, packet, reason)


cdef inline void answer4(Datapath *dp, const Packet *packet, DropReason reason) noexcept nogil:
    cdef uint8_t[ICMP_ERROR_MAX_BYTES] message
    cdef const Ipv4Header *original
    cdef uint32_t n_bytes
    if dp.table.own_addr == 0:
        return
    original = find_answerable(packet, reason)
    if original == NULL or not may_answer_now(dp, reason, original.src):
        return
    n_bytes = write_icmp_error(message, packet, original, reason, mtu_to_tell(dp, packet, reason))
    icmp_send(dp, message, n_bytes, original.src)


cdef inline void answer6(Datapath *dp, const Packet *packet, DropReason reason) noexcept nogil:
    cdef uint8_t[ICMP6_ERROR_MAX_BYTES] message
    cdef const Ipv6Header *original
    cdef const uint8_t *own_addr = <const uint8_t *> dp.table6.own_addr
    cdef uint32_t n_bytes
    if is_unspecified(own_addr):
        return
    original = find_answerable6(packet, reason)
    if original == NULL or not may_answer_now(dp, reason, tag_of6(original.src)):
        return
    n_bytes = write_icmp6_error(message, packet, original, reason, own_addr, mtu_to_tell(dp, packet, reason))
    icmp_send6(dp, message, n_bytes, original.src)


cdef inline bint is_unspecified(const uint8_t *address) noexcept nogil:
    """Whether it is ::, which stands for none."""
    cdef uint64_t[2] halves
    memcpy(halves, address, sizeof(halves))
    return (halves[0] | halves[1]) == 0


cdef inline bint may_answer_now(Datapath *dp, DropReason reason, uint32_t whose) noexcept nogil:
    if not icmp_take_token(&dp.icmp_limiter, reason, whose, now_ns()):
        dp.icmp_counters.rate_limited += 1
        return False
    return not lease_expired(dp)


cdef inline uint32_t mtu_to_tell(Datapath *dp, const Packet *packet, DropReason reason) noexcept nogil:
    return path_mtu(dp, packet.next_hop) if reason == TOO_BIG else 0
