"""Underlay → TUN."""

from libc.stdint cimport uint32_t

from flannel_udp._fastpath.datapath cimport Datapath

# Move one batch; return how many datagrams were received, 0 when none was waiting.
cdef uint32_t inbound_batch(Datapath *dp) noexcept nogil
