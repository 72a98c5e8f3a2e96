"""Answer a dropped packet's sender.

The answer leaves through a raw socket, not through the TUN: the kernel drops a packet that comes in on flannel0 with
one of the host's own addresses as its source (a martian, net/ipv4/fib_frontend.c), and flannel0's address is just that.
So a local pod gets it from its bridge, and a remote one by way of flannel0 and its peer.
"""

from libc.stdint cimport uint8_t, uint32_t

from flannel_udp._fastpath.clock cimport now_ns
from flannel_udp._fastpath.datapath cimport lease_expired, state_of
from flannel_udp._fastpath.drops cimport TOO_BIG
from flannel_udp._fastpath.icmp cimport ICMP_ERROR_MAX_BYTES, find_answerable, icmp_take_token, write_icmp_error
from flannel_udp._fastpath.sysio cimport icmp_send
from flannel_udp._fastpath.wire cimport Ipv4Header


cdef void answer_sender(Datapath *dp, const Packet *packet, DropReason reason) noexcept nogil:
    cdef uint8_t[ICMP_ERROR_MAX_BYTES] message
    cdef const Ipv4Header *original
    cdef uint32_t mtu = 0
    cdef uint32_t n_bytes
    if dp.icmp_fd < 0 or dp.table.own_addr == 0:
        return
    original = find_answerable(packet, reason)
    if original == NULL:
        return
    if not icmp_take_token(&dp.icmp_limiter, reason, original.src, now_ns()):
        dp.icmp_counters.rate_limited += 1
        return
    if lease_expired(dp):
        return
    if reason == TOO_BIG:
        mtu = state_of(dp, packet.next_hop).inner_mtu
    n_bytes = write_icmp_error(message, packet, original, reason, dp.table.own_addr, mtu)
    icmp_send(dp, message, n_bytes, original.src)
