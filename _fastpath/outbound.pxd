"""TUN → underlay."""

from libc.stdint cimport uint32_t

from flannel_udp._fastpath.datapath cimport Datapath
from flannel_udp._fastpath.drops cimport DropReason
from flannel_udp._fastpath.packet cimport Packet
from flannel_udp._fastpath.wire cimport VirtioNetHeader

# Move one batch; return how many packets were read, 0 when none was waiting.
cdef uint32_t outbound_batch(Datapath *dp) noexcept nogil

# Steps 2 to 4 for one packet: decide where it goes. For `trial`, as the next one is.
cdef DropReason try_route(const Datapath *dp, Packet *packet) noexcept nogil

# Step 5 for a packet that `try_route` has let pass: queue it.
cdef DropReason try_enqueue(Datapath *dp, const VirtioNetHeader *vnet, Packet *packet) noexcept nogil

# Likewise, and note each packet in the rings that there are.
cdef uint32_t outbound_batch_captured(Datapath *dp) noexcept nogil


cdef inline uint32_t move_outbound(Datapath *dp) noexcept nogil:
    """Move one batch by the one or the other: asked here, whether to note packets costs none of them anything."""
    if dp.ring != NULL or (dp.other != NULL and dp.other.ring != NULL):
        return outbound_batch_captured(dp)
    return outbound_batch(dp)
