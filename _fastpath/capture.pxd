"""Note the packets of a datapath whose engine has a ring: each place where a packet is seen calls one of these.

Which is asked once a batch, or once a system call: see docs/decisions/0031-capture.md.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from flannel_udp._fastpath.clock cimport CLOCK_REALTIME, read_ns
from flannel_udp._fastpath.coalesce cimport Write
from flannel_udp._fastpath.datapath cimport Bundle, Datapath
from flannel_udp._fastpath.drops cimport DropReason
from flannel_udp._fastpath.packet cimport Packet
from flannel_udp._fastpath.sendqueue cimport Run
from flannel_udp._fastpath.sockets cimport iovec

cdef enum:
    ALTERED_MAX = 64            # VXLAN's heading and an IPv6 header: all that is changed before there is a verdict

# A packet before the packet path changes it in place.
cdef struct Original:
    uint64_t time_ns
    uint8_t *data
    uint32_t len
    uint32_t n_saved
    uint8_t[ALTERED_MAX] saved


cdef inline void save_original(Original *original, const Packet *packet, uint32_t altered) noexcept nogil:
    """Save the first `altered` bytes of a packet, and where the others are."""
    original.time_ns = read_ns(CLOCK_REALTIME)
    original.data = packet.data
    original.len = packet.len
    original.n_saved = min(packet.len, altered)
    memcpy(original.saved, packet.data, original.n_saved)

# Note what was read from the TUN, with the payload of a super-packet's segments, or 0; `reason`: what came of it.
cdef void capture_read(
    Datapath *dp, const Original *original, uint16_t segment_bytes, const Packet *packet, DropReason reason
) noexcept nogil

# Note the first `n` packets of a run that was sent by this lane, or with a reason was not.
cdef void capture_run(Datapath *dp, const Run *run, uint32_t lane, DropReason reason, uint32_t n) noexcept nogil

# Note a datagram of a bundle.
cdef void capture_received(
    Datapath *dp, const Original *original, const Bundle *bundle, const Packet *packet, DropReason reason
) noexcept nogil

# Note what was written to the TUN, `n` packets in these pieces; a virtio-net header is in front of them.
cdef void capture_written(
    Datapath *dp, const Write *write, const iovec *pieces, uint32_t n_pieces, uint32_t n
) noexcept nogil

# Note the first of `n` packets of a write that were lost.
cdef void capture_lost(Datapath *dp, const Write *write, DropReason reason, uint32_t n) noexcept nogil
