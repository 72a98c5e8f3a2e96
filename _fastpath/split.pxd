"""Split what the TUN hands over whole (TSO, USO), and complete what it hands over with a partial checksum."""

from libc.stdint cimport uint8_t, uint32_t

from flannel_udp._fastpath.drops cimport DropReason
from flannel_udp._fastpath.packet cimport Packet
from flannel_udp._fastpath.wire cimport Ipv4Header, VirtioNetHeader

# How one super-packet becomes segments. Lengths in bytes.
cdef struct Split:
    uint32_t ip_len                 # IPv4 header
    uint32_t header_len             # IPv4 and TCP or UDP header: what every segment repeats
    uint32_t payload_len            # in all
    uint32_t segment_payload        # of each segment but the last
    uint32_t n                      # segments

# Check what the virtio-net header says of a super-packet; KEEP, and `split` filled in, where it is sound.
cdef DropReason plan_split(
    Split *split, const VirtioNetHeader *vnet, const Packet *packet, const Ipv4Header *ip
) noexcept nogil

# Write segment `i`, right in every byte, to `place` (header_len + segment_payload bytes); return its length.
cdef uint32_t write_segment(const Split *split, const Packet *packet, uint32_t i, uint8_t *place) noexcept nogil

# Fill in the checksum of a whole packet that has only the pseudo-header's sum; KEEP, or BAD_OFFLOAD where it cannot.
cdef DropReason complete_checksum(const VirtioNetHeader *vnet, Packet *packet) noexcept nogil
