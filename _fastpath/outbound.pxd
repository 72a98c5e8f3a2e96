"""TUN → underlay."""

from libc.stdint cimport uint32_t

from flannel_udp._fastpath.datapath cimport Datapath

# Move one batch; return how many packets were read, 0 when none was waiting.
cdef uint32_t outbound_batch(Datapath *dp) noexcept nogil
