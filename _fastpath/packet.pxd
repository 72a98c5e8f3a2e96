"""Packet: the one bounds-checked way to bytes."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from flannel_udp._fastpath.wire cimport be32

# A view. Borrowed: the bytes belong to the engine's arenas and are valid until the next batch.
cdef struct Packet:
    uint8_t *data               # first byte in use
    const uint8_t *outer_addr6  # as `outer_addr` of IPv6: 16 bytes in network order, borrowed as `data` is; NULL: none
    uint32_t len                # bytes in use
    uint32_t next_hop           # outbound: where to; inbound: from whom (a peer index, see routes.pxd)
    be32 outer_addr             # inbound: the underlay address it came from; 0: none that is known, or an IPv6 one
    uint8_t outer_tos           # inbound: the outer header's TOS byte
    uint8_t partial             # inbound: its checksum is only begun (see `offloaded`)
    uint16_t gso_size           # inbound: a super-packet with so many bytes of payload in each segment; 0: none


cdef inline uint8_t *packet_at(const Packet *packet, uint32_t offset, uint32_t n_bytes) noexcept nogil:
    """Return the place of `n_bytes` bytes from `offset` on, or NULL where the packet does not have them."""
    if offset > packet.len or n_bytes > packet.len - offset:
        return NULL
    return packet.data + offset
