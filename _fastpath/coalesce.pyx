"""Join the segments of a flow: the rules of the kernel's own GRO (net/ipv4/tcp_offload.c, udp_offload.c).

A super-packet tells the kernel that its checksums are good, so every segment's is verified before it is joined: a
corrupted packet goes on alone, as it came, and the receiver finds it out.
"""

from libc.string cimport memcmp, memcpy, memset

from flannel_udp._fastpath.checksum cimport finish, fold, sum_header, sum_pseudo_header
from flannel_udp._fastpath.ipv4 cimport header_len, transport_checksum
from flannel_udp._fastpath.packet cimport packet_at
from flannel_udp._fastpath.wire cimport (
    DONT_FRAGMENT,
    FRAG_OFFSET_MASK,
    IPV4_HEADER_BYTES,
    IPV4_MAX_BYTES,
    MORE_FRAGMENTS,
    PROTOCOL_TCP,
    PROTOCOL_UDP,
    TCP_ACK,
    TCP_CHECKSUM_OFFSET,
    TCP_ECE,
    TCP_HEADER_BYTES,
    TCP_PSH,
    UDP_CHECKSUM_OFFSET,
    UDP_HEADER_BYTES,
    VNET_GSO_TCPV4,
    VNET_GSO_UDP_L4,
    VNET_NEEDS_CSUM,
    Ipv4Header,
    TcpHeader,
    UdpHeader,
    be16,
    htons,
    ntohl,
    ntohs,
)


cdef void write_queue_clear(WriteQueue *queue) noexcept nogil:
    queue.n = 0
    queue.n_pieces = 0
    memset(queue.flows, 0xff, sizeof(queue.flows))


cdef void write_queue_add(WriteQueue *queue, const Packet *packet) noexcept nogil:
    cdef const Ipv4Header *ip = <const Ipv4Header *> packet.data
    cdef Write *write
    cdef const uint8_t *ports
    cdef uint32_t slot
    if ntohs(ip.frag) & (MORE_FRAGMENTS | FRAG_OFFSET_MASK):
        # Whose flow it is only its first fragment tells: let nothing that follows overtake it.
        memset(queue.flows, 0xff, sizeof(queue.flows))
        begin_write(queue, packet)
        return
    ports = packet_at(packet, header_len(ip), 4)
    if ports == NULL or (ip.protocol != PROTOCOL_TCP and ip.protocol != PROTOCOL_UDP):
        begin_write(queue, packet)
        return
    slot = flow_slot(ip, ports)
    if queue.flows[slot] != NONE_YET:
        write = &queue.writes[queue.flows[slot]]
        if may_follow(write, packet) and verify_checksums(write, packet):
            append(queue, write, packet)
            return
    write = begin_write(queue, packet)
    queue.flows[slot] = <uint16_t> (queue.n - 1)
    if ip.protocol == PROTOCOL_TCP and queue.join_tcp.on:
        begin_tcp(write)
    elif ip.protocol == PROTOCOL_UDP and queue.join_udp.on:
        begin_udp(write)


cdef inline uint32_t flow_slot(const Ipv4Header *ip, const uint8_t *ports) noexcept nogil:
    cdef uint32_t port_word = 0
    cdef uint32_t hashed
    memcpy(&port_word, ports, 4)
    hashed = ip.src ^ (ip.dst * <uint32_t> 0x85ebca6b) ^ port_word
    # The upper bits depend on all those below: a host's number in its subnet is on top where words are little-endian.
    return (hashed * <uint32_t> 0x9e3779b1) >> (32 - FLOW_SLOT_BITS)


cdef inline Write *begin_write(WriteQueue *queue, const Packet *packet) noexcept nogil:
    """Begin a write to which nothing may be joined, unless the caller knows better."""
    cdef Write *write = &queue.writes[queue.n]
    queue.n += 1
    write.packet = packet[0]
    write.n = 1
    write.header_len = 0
    write.first_piece = NONE_YET
    write.verified = False
    write.ended = True
    return write


cdef inline void begin_tcp(Write *write) noexcept nogil:
    cdef const Ipv4Header *ip = <const Ipv4Header *> write.packet.data
    cdef const TcpHeader *tcp = <const TcpHeader *> packet_at(&write.packet, IPV4_HEADER_BYTES, TCP_HEADER_BYTES)
    if tcp == NULL or tcp.data_offset >> 4 < 5:
        return
    # Data and an acknowledgement: SYN, FIN, RST, URG and CWR stand for themselves. ECE is on every segment, or on none.
    begin_joinable(
        write,
        ip,
        IPV4_HEADER_BYTES + <uint32_t> (tcp.data_offset >> 4) * 4,
        tcp.flags & <uint8_t> (~TCP_ECE & 0xff) == TCP_ACK,
    )
    write.next_seq = ntohl(tcp.seq) + write.payload_len


cdef inline void begin_udp(Write *write) noexcept nogil:
    cdef const Ipv4Header *ip = <const Ipv4Header *> write.packet.data
    cdef const UdpHeader *udp = <const UdpHeader *> packet_at(&write.packet, IPV4_HEADER_BYTES, UDP_HEADER_BYTES)
    if udp == NULL:
        return
    begin_joinable(
        write,
        ip,
        IPV4_HEADER_BYTES + UDP_HEADER_BYTES,
        udp.checksum != 0 and ntohs(udp.len) == write.packet.len - IPV4_HEADER_BYTES,
    )


cdef inline void begin_joinable(Write *write, const Ipv4Header *ip, uint32_t headers, bint plain) noexcept nogil:
    """Let others follow if the packet is a plain one with a payload and no IPv4 options."""
    if headers >= write.packet.len or header_len(ip) != IPV4_HEADER_BYTES:
        write.payload_len = 0
        return
    write.header_len = headers
    write.payload_len = write.packet.len - headers
    write.segment_payload = write.payload_len
    write.next_id = <uint16_t> (ntohs(ip.id) + 1)
    write.ended = not plain


cdef inline bint may_follow(const Write *write, const Packet *packet) noexcept nogil:
    """Whether the packet continues the write: the same headers but for what must differ, and the next in order."""
    cdef const uint8_t *a = write.packet.data
    cdef const uint8_t *b = packet.data
    cdef const Ipv4Header *ip = <const Ipv4Header *> b
    cdef uint32_t payload
    if write.ended or packet.len <= write.header_len or packet.next_hop != write.packet.next_hop:
        return False
    payload = packet.len - write.header_len
    if (
        payload > write.segment_payload
        or write.n >= WRITE_SEGMENTS_MAX
        or write.header_len + write.payload_len + payload > IPV4_MAX_BYTES
        or memcmp(a, b, 2) != 0             # version, header length, TOS
        or memcmp(a + 6, b + 6, 4) != 0     # DF, TTL, protocol
        or memcmp(a + 12, b + 12, 12) != 0  # addresses, ports
    ):
        return False
    # Splitting again counts the id up; where DF is set nobody reads it (RFC 6864 section 4.1).
    if not ntohs(ip.frag) & DONT_FRAGMENT and ntohs(ip.id) != write.next_id:
        return False
    if ip.protocol == PROTOCOL_TCP:
        return tcp_may_follow(write, a + IPV4_HEADER_BYTES, b + IPV4_HEADER_BYTES)
    return udp_may_follow(<const UdpHeader *> (b + IPV4_HEADER_BYTES), packet.len - IPV4_HEADER_BYTES)


cdef inline bint tcp_may_follow(const Write *write, const uint8_t *a, const uint8_t *b) noexcept nogil:
    cdef const TcpHeader *first = <const TcpHeader *> a
    cdef const TcpHeader *tcp = <const TcpHeader *> b
    return (
        ntohl(tcp.seq) == write.next_seq
        and tcp.ack == first.ack
        and tcp.data_offset == first.data_offset        # and so AE
        and tcp.flags & <uint8_t> (~TCP_PSH & 0xff) == first.flags
        and tcp.window == first.window
        and tcp.urgent == first.urgent      # without URG it means nothing, but splitting must give it back
        and memcmp(a + TCP_HEADER_BYTES, b + TCP_HEADER_BYTES, tcp_options_len(write)) == 0
    )


cdef inline size_t tcp_options_len(const Write *write) noexcept nogil:
    return write.header_len - IPV4_HEADER_BYTES - TCP_HEADER_BYTES


cdef inline bint udp_may_follow(const UdpHeader *udp, uint32_t udp_len) noexcept nogil:
    return udp.checksum != 0 and ntohs(udp.len) == udp_len


cdef inline bint l4_checksum_is_right(const Packet *packet) noexcept nogil:
    """Whether the TCP or UDP checksum of a packet without IPv4 options is right."""
    cdef const Ipv4Header *ip = <const Ipv4Header *> packet.data
    return transport_checksum(ip, packet.data + IPV4_HEADER_BYTES, packet.len - IPV4_HEADER_BYTES) == 0


cdef inline bint verify_checksums(Write *write, const Packet *packet) noexcept nogil:
    """Whether the write's first segment and the one that would follow are sound; the first's is computed once and kept.

    A write whose first segment is not sound is ended.
    """
    if not write.verified:
        write.verified = l4_checksum_is_right(&write.packet)
        write.ended = not write.verified
    return write.verified and l4_checksum_is_right(packet)


cdef inline void append(WriteQueue *queue, Write *write, const Packet *packet) noexcept nogil:
    cdef const Ipv4Header *ip = <const Ipv4Header *> packet.data
    cdef uint16_t index = <uint16_t> queue.n_pieces
    cdef Piece *piece = &queue.pieces[index]
    queue.n_pieces += 1
    piece.data = packet.data + write.header_len
    piece.len = packet.len - write.header_len
    piece.next = NONE_YET
    if write.first_piece == NONE_YET:
        write.first_piece = index
    else:
        queue.pieces[write.last_piece].next = index
    write.last_piece = index
    write.n += 1
    write.payload_len += piece.len
    write.next_seq += piece.len
    write.next_id += 1
    write.ended = piece.len < write.segment_payload
    if ip.protocol == PROTOCOL_TCP and (<const TcpHeader *> (packet.data + IPV4_HEADER_BYTES)).flags & TCP_PSH:
        write.ended = True


cdef void write_joined_headers(
    const WriteQueue *queue, const Write *write, uint8_t *headers, VirtioNetHeader *vnet
) noexcept nogil:
    cdef Ipv4Header *ip = <Ipv4Header *> headers
    cdef uint32_t l4_len = write.header_len + write.payload_len - IPV4_HEADER_BYTES
    # The checksum field holds the pseudo-header's sum, uncomplemented; whoever splits or receives it adds the rest.
    cdef be16 seed
    cdef const TcpHeader *last
    cdef TcpHeader *tcp
    cdef UdpHeader *udp
    memcpy(headers, write.packet.data, write.header_len)
    seed = fold(sum_pseudo_header(ip.src, ip.dst, ip.protocol, l4_len))
    ip.total_len = htons(<uint16_t> (IPV4_HEADER_BYTES + l4_len))
    ip.checksum = 0
    ip.checksum = finish(sum_header(headers, IPV4_HEADER_BYTES // 4, 0))
    vnet.flags = VNET_NEEDS_CSUM
    vnet.hdr_len = <uint16_t> write.header_len
    vnet.gso_size = <uint16_t> write.segment_payload
    vnet.csum_start = IPV4_HEADER_BYTES
    if ip.protocol == PROTOCOL_TCP:
        tcp = <TcpHeader *> (headers + IPV4_HEADER_BYTES)
        last = <const TcpHeader *> (queue.pieces[write.last_piece].data - write.header_len + IPV4_HEADER_BYTES)
        tcp.flags |= last.flags & <uint8_t> TCP_PSH     # splitting leaves it to the last segment
        tcp.checksum = seed
        vnet.gso_type = VNET_GSO_TCPV4
        vnet.csum_offset = TCP_CHECKSUM_OFFSET
    else:
        udp = <UdpHeader *> (headers + IPV4_HEADER_BYTES)
        udp.len = htons(<uint16_t> l4_len)
        udp.checksum = seed
        vnet.gso_type = VNET_GSO_UDP_L4
        vnet.csum_offset = UDP_CHECKSUM_OFFSET
