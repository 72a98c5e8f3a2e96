"""Underlay → TUN."""

from libc.stdint cimport uint32_t

from flannel_udp._fastpath.datapath cimport Datapath
from flannel_udp._fastpath.drops cimport DropReason
from flannel_udp._fastpath.packet cimport Packet

# Move one batch; return how many datagrams were received, 0 when none was waiting.
cdef uint32_t inbound_batch(Datapath *dp) noexcept nogil

# Steps 2 to 6 for one packet: decide on it. For `trial`.
cdef DropReason try_accept(Datapath *dp, Packet *packet) noexcept nogil

# Likewise, and note each packet in the ring.
cdef uint32_t inbound_batch_captured(Datapath *dp) noexcept nogil


cdef inline uint32_t move_inbound(Datapath *dp) noexcept nogil:
    """Move one batch by the one or the other, see `move_outbound`."""
    return inbound_batch(dp) if dp.ring == NULL else inbound_batch_captured(dp)
