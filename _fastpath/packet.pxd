"""Packet and batch: the one bounds-checked way to bytes."""

from libc.stdint cimport uint8_t, uint32_t

from flannel_udp._fastpath.wire cimport be32

cdef enum:
    BATCH_MAX = 64              # packets a batch
    HEADROOM = 64               # bytes free in front of a packet that was just read
    # Room for headroom and the largest IPv4 packet. An odd number of cache lines, so that the headers of neighbouring
    # slots fall into different cache sets.
    SLOT_BYTES = 1041 * 64

# Borrowed: the bytes belong to the engine's arena and are valid until the batch is read again.
cdef struct Packet:
    uint8_t *slot               # start of its SLOT_BYTES
    uint8_t *data               # first byte in use
    uint32_t len                # bytes in use
    uint32_t next_hop           # outbound: where to; inbound: from whom (a peer index, see routes.pxd)
    be32 outer_addr             # the underlay address at the other end

cdef struct Batch:
    uint32_t n                  # packets in use
    Packet packets[BATCH_MAX]


cdef inline uint8_t *packet_at(const Packet *packet, uint32_t offset, uint32_t n_bytes) noexcept nogil:
    """Return the place of `n_bytes` bytes from `offset` on, or NULL where the packet does not have them."""
    if offset > packet.len or n_bytes > packet.len - offset:
        return NULL
    return packet.data + offset


cdef inline void packet_reset(Packet *packet) noexcept nogil:
    """Make the packet empty, with full headroom."""
    packet.data = packet.slot + HEADROOM
    packet.len = 0


cdef inline uint8_t *packet_push(Packet *packet, uint32_t n_bytes) noexcept nogil:
    """Take `n_bytes` of headroom into use; return the new first byte, or NULL where there is not enough headroom."""
    if n_bytes > <uint32_t> (packet.data - packet.slot):
        return NULL
    packet.data -= n_bytes
    packet.len += n_bytes
    return packet.data


cdef inline uint8_t *packet_pull(Packet *packet, uint32_t n_bytes) noexcept nogil:
    """Give `n_bytes` from the front back to the headroom; return them, or NULL where the packet is shorter."""
    cdef uint8_t *front = packet.data
    if n_bytes > packet.len:
        return NULL
    packet.data += n_bytes
    packet.len -= n_bytes
    return front


cdef inline void batch_keep(Batch *batch, uint32_t kept, uint32_t i) noexcept nogil:
    """Move packet `i` to place `kept` <= i by exchange, so that no slot is lost."""
    cdef Packet moved
    if kept != i:
        moved = batch.packets[kept]
        batch.packets[kept] = batch.packets[i]
        batch.packets[i] = moved
