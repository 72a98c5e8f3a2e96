"""The state that one engine's batches share: descriptors, the table in force, arenas, counters."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from flannel_udp._fastpath.drops cimport DirectionCounters
from flannel_udp._fastpath.icmp cimport IcmpLimiter
from flannel_udp._fastpath.packet cimport Batch
from flannel_udp._fastpath.routes cimport Table
from flannel_udp._fastpath.wire cimport be16

cdef enum SourceCheck:
    SOURCE_OFF                  # anybody may send anything, as with flanneld
    SOURCE_LOOSE                # only registered peers may send
    SOURCE_STRICT               # and an inner source inside some lease must be inside the sender's

cdef struct PeerCounters:
    uint64_t packets_out
    uint64_t bytes_out          # inner bytes
    uint64_t packets_in
    uint64_t bytes_in

cdef enum:
    PEER_CHUNK_BITS = 10        # counters are allocated 1,024 peers at a time and never move
    PEER_CHUNK = 1 << PEER_CHUNK_BITS
    PEER_CHUNKS_MAX = 1024      # so a million peers

cdef struct IcmpCounters:
    uint64_t sent
    uint64_t rate_limited
    uint64_t failed             # the raw socket refused it

cdef struct Datapath:
    int tun_fd
    int udp_fd
    int icmp_fd                 # raw, IP_HDRINCL
    uint32_t vnet_bytes         # size of the virtio-net header in front of each packet on the TUN; 0: none
    be16 port                   # of every peer
    SourceCheck source_check
    const Table *table          # borrowed: valid until the next quiet point
    Batch outbound
    Batch inbound
    DirectionCounters out_counters
    DirectionCounters in_counters
    IcmpCounters icmp_counters
    IcmpLimiter icmp_limiter
    PeerCounters *peer_chunks[PEER_CHUNKS_MAX]
    int tun_errno               # set once the TUN is beyond use (deleted): reading stops
    uint32_t read_errors        # in a row; any success sets it back


cdef inline PeerCounters *counters_of(Datapath *dp, uint32_t peer) noexcept nogil:
    return &dp.peer_chunks[peer >> PEER_CHUNK_BITS][peer & (PEER_CHUNK - 1)]
