"""Cut an inner packet that is too large for its path into fragments, as a router does (RFC 791 section 3.2)."""

from libc.stdint cimport uint16_t, uint32_t

from flannel_udp._fastpath.datapath cimport Datapath
from flannel_udp._fastpath.packet cimport Packet

# Queue the packet, which may be fragmented, in pieces of at most `mtu` bytes, which is 576 or more. It must not lie in
# the send queue's arena, which may be sent meanwhile.
cdef void queue_fragments(Datapath *dp, const Packet *packet, uint16_t how, uint32_t mtu) noexcept nogil
