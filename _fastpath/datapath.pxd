"""The state that one engine's batches share: descriptors, the table in force, arenas, counters."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc

from flannel_udp._fastpath.atomics cimport load_word
from flannel_udp._fastpath.capture_ring cimport Ring
from flannel_udp._fastpath.clock cimport boottime_ns
from flannel_udp._fastpath.coalesce cimport WriteQueue
from flannel_udp._fastpath.drops cimport DirectionCounters
from flannel_udp._fastpath.ecn cimport OuterTos
from flannel_udp._fastpath.family cimport Family
from flannel_udp._fastpath.icmp cimport IcmpLimiter
from flannel_udp._fastpath.sendqueue cimport SendQueue
from flannel_udp._fastpath.table cimport FIRST_PEER, Table
from flannel_udp._fastpath.table6 cimport Table6
from flannel_udp._fastpath.wire cimport VxlanHeading, be16, be32

cdef enum SourceCheck:
    SOURCE_OFF                  # anybody may send anything, as with flanneld
    SOURCE_LOOSE                # only registered peers may send
    SOURCE_STRICT               # and an inner source inside some lease must be inside the sender's

cdef enum Encapsulation:
    ENCAP_UDP                   # the inner packet is the datagram
    ENCAP_VXLAN                 # RFC 7348
    ENCAP_IPIP                  # RFC 2003

cdef struct PeerState:
    uint64_t packets_out
    uint64_t bytes_out          # inner bytes
    uint64_t packets_in
    uint64_t bytes_in
    uint64_t inner_mtu          # bytes an inner packet may have on the way there: the smaller of the two below
    uint32_t longest_out        # bytes of the longest packet since `sampled_…`; the agent's own probes do not count
    uint32_t run_refused_by     # `peer_tag` of whom a run was refused for: an index may change hands, see `segmenting`
    uint64_t refused_out        # packets that the kernel would not send
    uint64_t run_retry_ns       # when a run is due again; 0: none was refused since one was taken
    uint64_t probed_mtu         # shared with other threads, see `pathmtu`: `peer_tag` << 32 | bytes; 0: none
    uint64_t learned_until_ns
    uint64_t learned_epoch      # `path_epoch` when it was learned
    uint32_t learned_mtu        # what the kernel says; 0: no limit has been met
    uint32_t learned_of         # likewise `peer_tag`
    uint64_t sampled_out        # packets at the last `Engine.sample_peers`; the control plane's
    uint64_t sampled_in
    uint64_t sampled_bytes_out  # likewise
    uint64_t sampled_bytes_in

cdef enum:
    PEER_CHUNK_BITS = 10        # states are allocated 1,024 peers at a time and never move
    PEER_CHUNK = 1 << PEER_CHUNK_BITS
    PEER_CHUNKS_MAX = 1024      # so a million peers

cdef struct IcmpCounters:
    uint64_t sent
    uint64_t rate_limited
    uint64_t failed             # the raw socket refused it

cdef enum:
    RECEIVE_MAX = 64            # datagrams, or bundles of them, a receive
    RECEIVE_MIN = 3             # a turn's worth of the longest bundles
    RECEIVE_HEADROOM = 64       # in front of each: room for a virtio-net header
    RECEIVE_BYTES = 64 * 1024 + RECEIVE_HEADROOM    # a UDP datagram is shorter than 64 KiB
    TUN_BUFFER_BYTES = 66 * 1024    # a virtio-net header and the largest IPv4 packet

# What one receive brought from one sender: a datagram, or several of one size that the kernel joined (UDP_GRO).
cdef struct Bundle:
    uint8_t *data
    uint32_t len                # bytes in all
    uint32_t segment_len        # bytes of each datagram but the last
    be32 outer_addr             # of IPv4
    be16 outer_port             # only where it is captured; 0: the encapsulation has none
    uint8_t[16] outer_addr6     # of IPv6
    uint8_t outer_tos           # IPv6: the traffic class

cdef struct SystemCalls:
    uint64_t tun_reads
    uint64_t tun_read_errors        # of those
    uint64_t tun_writes
    uint64_t tun_join_errors        # of those: super-packets that the kernel refused
    uint64_t udp_sends
    uint64_t udp_receives
    uint64_t udp_receive_errors     # of those; what waited stayed where it was

# What a kernel peer had left to a network card that was not there: see `offloaded`. Packets.
cdef struct OffloadedIn:
    uint64_t partial_checksums
    uint64_t super_packets

cdef enum:
    LANES_MAX = 64

cdef enum:
    FOR_EVER = 0xffffffffffffffff
    LEASE_ASKED_EVERY = 16      # packets that go out one by one

cdef struct Datapath:
    uint64_t forward_until_ns   # shared with other threads: a time of CLOCK_BOOTTIME, or FOR_EVER
    uint64_t inner_mtu          # likewise: the TUN's MTU
    uint64_t path_epoch         # likewise: what was learned of the paths in a former one does not count
    Family family
    Ring *ring                  # where this batch's packets are captured; NULL: nowhere
    Datapath *other             # the other family's, which shares the TUN and its buffers; NULL: there is none
    int tun_fd
    int udp_fd                  # what comes in
    int lanes[LANES_MAX]        # what goes out: sockets of the same address, each with a send buffer
    be16 lane_ports[LANES_MAX]  # what they are bound to; 0: the encapsulation has none
    uint32_t n_lanes            # a power of two
    uint32_t n_ports            # likewise: their source ports, lane by lane in turn
    int icmp_fd                 # raw, of this family: what is sent has its IP header
    uint32_t vnet_bytes         # size of the virtio-net header in front of each packet on the TUN; 0: none
    be16 port                   # of every peer; 0: the encapsulation has none
    be32 outer_addr             # our own, of IPv4: what `udp_fd` is bound to
    uint8_t[16] outer_addr6     # likewise of IPv6
    Encapsulation encapsulation
    VxlanHeading heading        # VXLAN: what all our packets have in front, but for the peer's MAC
    OuterTos outer_tos
    SourceCheck source_check
    const Table *table          # borrowed: valid until the next quiet point; IPv4's
    const Table6 *table6        # likewise IPv6's
    int epoll_fd                # both descriptors, watched for reading
    uint8_t *tun_buffer         # TUN_BUFFER_BYTES: a virtio-net header, and behind it the packet
    uint8_t *receive_arena      # RECEIVE_MAX * RECEIVE_BYTES
    SendQueue send_queue
    Bundle bundles[RECEIVE_MAX]
    uint32_t n_bundles
    uint32_t receive_n          # bundles that the next receive asks for
    WriteQueue write_queue
    DirectionCounters out_counters
    DirectionCounters in_counters
    IcmpCounters icmp_counters
    IcmpLimiter icmp_limiter
    OffloadedIn offloaded_in
    SystemCalls calls
    PeerState *peer_chunks[PEER_CHUNKS_MAX]
    uint32_t n_without_runs     # peers, see `segmenting`
    int tun_errno               # set once the TUN is beyond use (deleted): reading stops
    uint32_t read_errors        # in a row; any success sets it back
    uint32_t lost_reads         # in a row without any other answer: reads that cost a packet, see `refusal`
    uint64_t last_lost_read     # its number among `calls.tun_reads`


cdef inline PeerState *state_of(Datapath *dp, uint32_t peer) noexcept nogil:
    return &dp.peer_chunks[peer >> PEER_CHUNK_BITS][peer & (PEER_CHUNK - 1)]


cdef inline int allocate_peer_states(Datapath *dp, uint32_t n_hops) except -1:
    """Have a state for each next hop of a table. Chunks never move or go. Raises MemoryError, ValueError."""
    cdef uint32_t chunk
    if n_hops > <uint32_t> PEER_CHUNK * PEER_CHUNKS_MAX:
        raise ValueError(f"more than {PEER_CHUNK * PEER_CHUNKS_MAX - FIRST_PEER} peers")
    for chunk in range((n_hops + PEER_CHUNK - 1) >> PEER_CHUNK_BITS):
        if dp.peer_chunks[chunk] == NULL:
            dp.peer_chunks[chunk] = <PeerState *> calloc(PEER_CHUNK, sizeof(PeerState))
            if dp.peer_chunks[chunk] == NULL:
                raise MemoryError
    return 0


cdef inline bint lease_expired(const Datapath *dp) noexcept nogil:
    """Whether nothing may be forwarded any more.

    Asked right before every system call that sends many packets, and every LEASE_ASKED_EVERY packets where each is one:
    an agent that was stopped, or a machine that was suspended, goes on anywhere, and perhaps the subnet is another
    host's by then.
    """
    cdef uint64_t until_ns = load_word(&dp.forward_until_ns)
    return until_ns != <uint64_t> FOR_EVER and boottime_ns() >= until_ns
