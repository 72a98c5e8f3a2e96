"""Cut an inner packet that is too large for its path into fragments, as a router does (RFC 791 section 3.2)."""

from libc.stdint cimport uint16_t, uint32_t

from flannel_udp._fastpath.datapath cimport Datapath
from flannel_udp._fastpath.drops cimport DropReason
from flannel_udp._fastpath.packet cimport Packet

# Queue the packet, which may be fragmented, in pieces of at most `mtu` bytes, which is 576 or more. It must not lie in
# the send queue's arena, which may be sent meanwhile. BAD_TOTAL_LEN, and nothing is queued, where it is a fragment
# itself that ends beyond what any packet has.
cdef DropReason queue_fragments(Datapath *dp, const Packet *packet, uint16_t how, uint32_t mtu) noexcept nogil
