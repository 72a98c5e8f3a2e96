"""A ring of captured packets: one engine writes, one other thread reads, and neither waits for the other.

What finds no room is lost and counted. Records are whole where somebody reads: `head` moves once one is written.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from flannel_udp._fastpath.drops cimport DropReason
from flannel_udp._fastpath.sockets cimport iovec

# Where the packet path has seen a packet, in the order in which one packet meets them on two hosts.
cdef enum Place:
    OUT_INNER               # read from the TUN; a super-packet is one
    OUT_OUTER               # handed to the underlay's socket; what is sent in runs is one each
    IN_OUTER                # received from there, likewise
    IN_INNER                # written to the TUN; what was joined is one
    PLACES_N

cdef enum RecordFlag:
    RECORD_MAY_FRAGMENT = 1     # the outer packet goes without "don't fragment"

# What is noted of a packet, in front of its first bytes. Readers know the layout: admin.captured.
cdef struct Record:
    uint32_t n_bytes        # of the record, what follows included: a multiple of 8
    uint32_t kept           # bytes of the packet that follow
    uint64_t time_ns        # since 1970
    uint32_t packet_bytes   # of the whole packet; outer ones without the headers that the kernel writes or takes off
    uint16_t segment_bytes  # a super-packet's: payload of each of its segments; 0: it is none
    uint16_t n              # packets that the verdict is about, of which this is the first
    uint8_t place
    uint8_t reason          # a DropReason; KEEP: it went on
    uint8_t family
    uint8_t encapsulation
    uint8_t outer_tos       # of outer ones, as what follows
    uint8_t flags
    uint16_t source_port    # host order; 0: the encapsulation has none
    uint16_t destination_port
    uint8_t[6] unused
    uint8_t[16] own_addr    # network order, IPv4's in front; 0: none that is known
    uint8_t[16] peer_addr   # likewise: who it came from, or is to go to

cdef struct Ring:
    uint8_t *data
    uint64_t size           # bytes, a power of two
    uint64_t head           # bytes written since the start; the engine's
    uint64_t tail           # bytes read; the reader's
    uint64_t reasons        # a bit each: what is wanted, bit 0 is KEEP
    uint32_t places         # likewise
    uint32_t snap_bytes     # kept of a packet at most
    uint32_t every          # of the packets that are wanted: one in so many
    uint64_t n_wanted
    uint64_t[<int> PLACES_N] n_taken    # packets that were to be noted
    uint64_t[<int> PLACES_N] n_lost     # of those

# Whether a packet with this verdict is to be noted; counts it, so ask once.
cdef bint takes(Ring *ring, Place place, DropReason reason) noexcept nogil

# Note a packet whose bytes are in these pieces; `skip` of the first ones are not the packet's. The record's lengths are
# filled in. The caller has asked `takes`.
cdef void note(Ring *ring, Record *record, const iovec *pieces, uint32_t n_pieces, size_t skip) noexcept nogil


cdef class CaptureRing:
    cdef Ring ring
