"""Join the segments of a flow: the rules of the kernel's own GRO.

Those are in net/ipv4/tcp_offload.c and udp_offload.c, and for what is in front of TCP and UDP in net/ipv4/af_inet.c and
net/ipv6/ip6_offload.c. `family` is a constant: everything is compiled once for each.

A super-packet tells the kernel that its checksums are good, so every segment's is verified before it is joined: a
corrupted packet goes on alone, as it came, and the receiver finds it out.
"""

from libc.string cimport memcmp, memcpy, memset

from flannel_udp._fastpath.checksum cimport fold
from flannel_udp._fastpath.family cimport FAMILY_4, FAMILY_6, Family
from flannel_udp._fastpath.packet cimport packet_at
from flannel_udp._fastpath.transport cimport (
    Transport,
    family_of,
    find_transport,
    ip_header_bytes,
    l4_checksum_is_right,
    protocol_of,
    set_length,
    sum_pseudo_header_of,
    tcp_gso_type,
)
from flannel_udp._fastpath.wire cimport (
    DONT_FRAGMENT,
    IPV4_MAX_BYTES,
    PROTOCOL_TCP,
    PROTOCOL_UDP,
    TCP_ACK,
    TCP_CHECKSUM_OFFSET,
    TCP_ECE,
    TCP_HEADER_BYTES,
    TCP_PSH,
    UDP_CHECKSUM_OFFSET,
    UDP_HEADER_BYTES,
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
    add(queue, FAMILY_4, packet)


cdef void write_queue_add6(WriteQueue *queue, const Packet *packet) noexcept nogil:
    add(queue, FAMILY_6, packet)


cdef inline void add(WriteQueue *queue, Family family, const Packet *packet) noexcept nogil:
    cdef Transport transport = find_transport(family, packet)
    cdef Write *write
    cdef const uint8_t *ports
    cdef uint32_t slot
    if transport.is_fragment:
        # Whose flow it is only its first fragment tells: let nothing that follows overtake it.
        memset(queue.flows, 0xff, sizeof(queue.flows))
        begin_write(queue, packet)
        return
    ports = packet_at(packet, transport.start, 4)
    if ports == NULL or (transport.protocol != PROTOCOL_TCP and transport.protocol != PROTOCOL_UDP):
        begin_write(queue, packet)
        return
    slot = flow_slot(family, packet.data, ports)
    if queue.flows[slot] != NONE_YET:
        write = &queue.writes[queue.flows[slot]]
        if may_follow(write, family, packet) and verify_checksums(write, family, packet):
            append(queue, write, family, packet)
            return
    write = begin_write(queue, packet)
    queue.flows[slot] = <uint16_t> (queue.n - 1)
    if transport.protocol == PROTOCOL_TCP and queue.join_tcp.on:
        begin_tcp(write, family, transport.start)
    elif transport.protocol == PROTOCOL_UDP and queue.join_udp.on:
        begin_udp(write, family, transport.start)


cdef inline uint32_t flow_slot(Family family, const uint8_t *ip, const uint8_t *ports) noexcept nogil:
    cdef uint32_t port_word = 0
    cdef uint32_t hashed
    memcpy(&port_word, ports, 4)
    if family == FAMILY_6:
        hashed = folded(ip + 8) ^ (folded(ip + 24) * <uint32_t> 0x85ebca6b) ^ port_word
    else:
        hashed = (<const Ipv4Header *> ip).src ^ ((<const Ipv4Header *> ip).dst * <uint32_t> 0x85ebca6b) ^ port_word
    # The upper bits depend on all those below: a host's number in its subnet is on top where words are little-endian.
    return (hashed * <uint32_t> 0x9e3779b1) >> (32 - FLOW_SLOT_BITS)


cdef inline uint32_t folded(const uint8_t *address) noexcept nogil:
    """Make one word of an IPv6 address."""
    cdef uint32_t[4] words
    memcpy(words, address, sizeof(words))
    return words[0] ^ words[1] ^ words[2] ^ words[3]


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


cdef inline void begin_tcp(Write *write, Family family, uint32_t start) noexcept nogil:
    cdef uint32_t ip_len = ip_header_bytes(family)
    cdef const TcpHeader *tcp = <const TcpHeader *> packet_at(&write.packet, ip_len, TCP_HEADER_BYTES)
    if tcp == NULL or tcp.data_offset >> 4 < 5:
        return
    # Data and an acknowledgement: SYN, FIN, RST, URG and CWR stand for themselves. ECE is on every segment, or on none.
    begin_joinable(
        write,
        family,
        start,
        ip_len + <uint32_t> (tcp.data_offset >> 4) * 4,
        tcp.flags & <uint8_t> (~TCP_ECE & 0xff) == TCP_ACK and write.packet.gso_size == 0,
    )
    write.next_seq = ntohl(tcp.seq) + write.payload_len


cdef inline void begin_udp(Write *write, Family family, uint32_t start) noexcept nogil:
    cdef uint32_t ip_len = ip_header_bytes(family)
    cdef const UdpHeader *udp = <const UdpHeader *> packet_at(&write.packet, ip_len, UDP_HEADER_BYTES)
    if udp == NULL:
        return
    begin_joinable(
        write,
        family,
        start,
        ip_len + UDP_HEADER_BYTES,
        udp.checksum != 0 and ntohs(udp.len) == write.packet.len - ip_len and write.packet.gso_size == 0,
    )


cdef inline void begin_joinable(
    Write *write, Family family, uint32_t start, uint32_t headers, bint plain
) noexcept nogil:
    """Let others follow if the packet is a plain one with a payload and no IPv4 options or extension headers."""
    if headers >= write.packet.len or start != ip_header_bytes(family):
        write.payload_len = 0
        return
    write.header_len = headers
    write.payload_len = write.packet.len - headers
    write.segment_payload = write.payload_len
    if family == FAMILY_4:
        write.next_id = <uint16_t> (ntohs((<const Ipv4Header *> write.packet.data).id) + 1)
    write.ended = not plain


cdef inline bint may_follow(const Write *write, Family family, const Packet *packet) noexcept nogil:
    """Whether the packet continues the write: the same headers but for what must differ, and the next in order."""
    cdef const uint8_t *a = write.packet.data
    cdef const uint8_t *b = packet.data
    cdef uint32_t ip_len = ip_header_bytes(family)
    cdef uint32_t payload
    if write.ended or packet.len <= write.header_len or packet.next_hop != write.packet.next_hop:
        return False
    if packet.gso_size != 0:
        return False                        # many segments of its own, which a join would make one
    payload = packet.len - write.header_len
    if (
        payload > write.segment_payload
        or write.n >= WRITE_SEGMENTS_MAX
        or write.header_len + write.payload_len + payload > IPV4_MAX_BYTES
        or not ip_may_follow(write, family, a, b)
    ):
        return False
    if protocol_of(family, b) == PROTOCOL_TCP:
        return tcp_may_follow(write, family, a + ip_len, b + ip_len)
    return udp_may_follow(<const UdpHeader *> (b + ip_len), packet.len - ip_len)


cdef inline bint ip_may_follow(const Write *write, Family family, const uint8_t *a, const uint8_t *b) noexcept nogil:
    """Whether the IP header is such, and the ports behind it are the same."""
    cdef const Ipv4Header *ip = <const Ipv4Header *> b
    if family == FAMILY_6:
        return (
            memcmp(a, b, 4) == 0                # version, traffic class, flow label
            and memcmp(a + 6, b + 6, 2) == 0    # next header, hop limit
            and memcmp(a + 8, b + 8, 32) == 0   # addresses
            and memcmp(a + 40, b + 40, 4) == 0  # ports
        )
    if (
        memcmp(a, b, 2) != 0                    # version, header length, TOS
        or memcmp(a + 6, b + 6, 4) != 0         # DF, TTL, protocol
        or memcmp(a + 12, b + 12, 12) != 0      # addresses, ports
    ):
        return False
    # Splitting again counts the id up; where DF is set nobody reads it (RFC 6864 section 4.1).
    return ntohs(ip.frag) & DONT_FRAGMENT != 0 or ntohs(ip.id) == write.next_id


cdef inline bint tcp_may_follow(
    const Write *write, Family family, const uint8_t *a, const uint8_t *b
) noexcept nogil:
    cdef const TcpHeader *first = <const TcpHeader *> a
    cdef const TcpHeader *tcp = <const TcpHeader *> b
    return (
        ntohl(tcp.seq) == write.next_seq
        and tcp.ack == first.ack
        and tcp.data_offset == first.data_offset        # and so AE
        and tcp.flags & <uint8_t> (~TCP_PSH & 0xff) == first.flags
        and tcp.window == first.window
        and tcp.urgent == first.urgent      # without URG it means nothing, but splitting must give it back
        and memcmp(a + TCP_HEADER_BYTES, b + TCP_HEADER_BYTES, tcp_options_len(write, family)) == 0
    )


cdef inline size_t tcp_options_len(const Write *write, Family family) noexcept nogil:
    return write.header_len - ip_header_bytes(family) - TCP_HEADER_BYTES


cdef inline bint udp_may_follow(const UdpHeader *udp, uint32_t udp_len) noexcept nogil:
    return udp.checksum != 0 and ntohs(udp.len) == udp_len


cdef inline bint verify_checksums(Write *write, Family family, const Packet *packet) noexcept nogil:
    """Whether the write's first segment and the one that would follow are sound; the first's is computed once and kept.

    A write whose first segment is not sound is ended. A checksum that is only begun (`offloaded`) tells nothing: such a
    packet is believed, as it would be alone.
    """
    if not write.verified:
        write.verified = write.packet.partial or l4_checksum_is_right(family, &write.packet)
        write.ended = not write.verified
    return write.verified and (packet.partial or l4_checksum_is_right(family, packet))


cdef inline void append(WriteQueue *queue, Write *write, Family family, const Packet *packet) noexcept nogil:
    cdef const TcpHeader *tcp = <const TcpHeader *> (packet.data + ip_header_bytes(family))
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
    if family == FAMILY_4:
        write.next_id += 1
    write.ended = piece.len < write.segment_payload
    if protocol_of(family, packet.data) == PROTOCOL_TCP and tcp.flags & TCP_PSH:
        write.ended = True


cdef void write_joined_headers(
    const WriteQueue *queue, const Write *write, uint8_t *headers, VirtioNetHeader *vnet
) noexcept nogil:
    cdef Family family = family_of(&write.packet)
    cdef uint32_t ip_len = ip_header_bytes(family)
    cdef uint8_t protocol = protocol_of(family, write.packet.data)
    cdef uint32_t l4_len = write.header_len + write.payload_len - ip_len
    # The checksum field holds the pseudo-header's sum, uncomplemented; whoever splits or receives it adds the rest.
    cdef be16 seed = fold(sum_pseudo_header_of(family, write.packet.data, protocol, l4_len))
    cdef const TcpHeader *last
    cdef TcpHeader *tcp
    cdef UdpHeader *udp
    memcpy(headers, write.packet.data, write.header_len)
    set_length(family, headers, ip_len, l4_len)
    vnet.flags = VNET_NEEDS_CSUM
    vnet.hdr_len = <uint16_t> write.header_len
    vnet.gso_size = <uint16_t> write.segment_payload
    vnet.csum_start = <uint16_t> ip_len
    if protocol == PROTOCOL_TCP:
        tcp = <TcpHeader *> (headers + ip_len)
        last = <const TcpHeader *> (queue.pieces[write.last_piece].data - write.header_len + ip_len)
        tcp.flags |= last.flags & <uint8_t> TCP_PSH     # splitting leaves it to the last segment
        tcp.checksum = seed
        vnet.gso_type = tcp_gso_type(family)
        vnet.csum_offset = TCP_CHECKSUM_OFFSET
    else:
        udp = <UdpHeader *> (headers + ip_len)
        udp.len = htons(<uint16_t> l4_len)
        udp.checksum = seed
        vnet.gso_type = VNET_GSO_UDP_L4
        vnet.csum_offset = UDP_CHECKSUM_OFFSET
