"""Split what the TUN hands over whole (TSO, USO), and complete what it hands over with a partial checksum."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from flannel_udp._fastpath.drops cimport DropReason
from flannel_udp._fastpath.family cimport Family
from flannel_udp._fastpath.packet cimport Packet
from flannel_udp._fastpath.wire cimport VirtioNetHeader

# How one super-packet becomes segments. Lengths in bytes.
cdef struct Split:
    Family family
    uint8_t protocol                # TCP or UDP
    uint32_t ip_len                 # IPv4 header, or IPv6 header and extension headers
    uint64_t ip_sum                 # of an IPv4 header, but for what differs by segment: length, id and checksum
    uint32_t header_len             # that and the TCP or UDP header: what every segment repeats
    uint32_t payload_len            # in all
    uint32_t segment_payload        # of each segment but the last
    uint32_t n                      # segments

# Check what the virtio-net header says of a super-packet whose segments have `segment_max` bytes at most; KEEP, and
# `split` filled in, where it is sound.
cdef DropReason plan_split(
    Split *split, Family family, const VirtioNetHeader *vnet, const Packet *packet, uint32_t segment_max
) noexcept nogil

# Write segment `i`, right in every byte, to `place` (header_len + segment_payload bytes); return its length.
cdef uint32_t write_segment(const Split *split, const Packet *packet, uint32_t i, uint8_t *place) noexcept nogil

# Fill in the checksum of a whole packet that has only the pseudo-header's sum; KEEP, or BAD_OFFLOAD where it cannot. It
# is nowhere in the first `ip_len` bytes.
cdef DropReason complete_checksum(const VirtioNetHeader *vnet, Packet *packet, uint32_t ip_len) noexcept nogil
