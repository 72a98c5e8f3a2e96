"""The send queue goes out to the underlay; `deliver` is its counterpart."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from flannel_udp._fastpath.datapath cimport Datapath, Encapsulation
from flannel_udp._fastpath.encapsulation cimport heading_bytes, write_heading
from flannel_udp._fastpath.sendqueue cimport SOURCE_PORT_SHIFT, Run, queue_commit, queue_end, queue_has_room

# Send the queue's runs, each as one message, and clear it; count what was sent and what was not.
cdef void transmit(Datapath *dp) noexcept nogil


cdef inline uint8_t *place_to_send(
    Datapath *dp, Encapsulation kind, uint32_t n_bytes, uint32_t next_hop
) noexcept nogil:
    """Have room for one more packet of up to `n_bytes`; return where it belongs, behind what stands in front of it."""
    if not queue_has_room(&dp.send_queue, heading_bytes(kind) + n_bytes):
        transmit(dp)
    write_heading(dp, kind, queue_end(&dp.send_queue), next_hop)
    return queue_end(&dp.send_queue) + heading_bytes(kind)


cdef inline void send_later(
    Datapath *dp, Encapsulation kind, uint32_t n_bytes, uint32_t next_hop, uint16_t how
) noexcept nogil:
    """Queue the packet of `n_bytes` that was written there."""
    queue_commit(&dp.send_queue, heading_bytes(kind) + n_bytes, next_hop, how)


cdef inline uint32_t lane_of(const Datapath *dp, const Run *run) noexcept nogil:
    """Which lane a run takes: a flow's packets always the same. A full one costs those of few peers."""
    return (run.next_hop * dp.n_ports + (run.how >> SOURCE_PORT_SHIFT)) & (dp.n_lanes - 1)
