"""Every reason to drop a packet, one sentence each."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from flannel_udp._fastpath.atomics cimport (
    fence_acquire,
    fence_release,
    load_word_relaxed,
    store_word_relaxed,
    store_word_release,
)
from flannel_udp._fastpath.clock cimport wall_clock_ns
from flannel_udp._fastpath.packet cimport packet_at
from flannel_udp._fastpath.wire cimport IPV4_HEADER_BYTES, IPV6_HEADER_BYTES, Ipv4Header, Ipv6Header

cdef enum:
    READ_TRIES = 100

SENTENCES = {
    DropReason.BAD_VXLAN_HEADER: "the VXLAN header is cut short or names no network: the flag I is not set",
    DropReason.OTHER_VNI: "the VXLAN network identifier (VNI) is not ours",
    DropReason.NOT_IPV4_FRAME: "the frame inside VXLAN holds no IPv4: ARP, IPv6, a VLAN tag or something else",
    DropReason.NOT_IPV6_FRAME: "the frame inside VXLAN over IPv6 holds no IPv6: IPv4, a VLAN tag or something else",
    DropReason.OTHERS_MAC: "the frame inside VXLAN is for another MAC than ours",
    DropReason.BAD_OUTER_HEADER: "the outer IPv4 header is not one of IP-in-IP",
    DropReason.TOO_SHORT: "shorter than an IP header: 20 bytes for IPv4, 40 for IPv6",
    DropReason.NOT_IPV4: "the IP version is not 4",
    DropReason.NOT_IPV6: "the IP version is not 6",
    DropReason.BAD_HEADER_LEN: "the header length is below 20 bytes or beyond the packet",
    DropReason.BAD_TOTAL_LEN: "the total (IPv6: payload) length is not the packet's, or a fragment ends past 65,535",
    DropReason.BAD_HEADER_CHECKSUM: "the checksum of the IPv4 header is wrong",
    DropReason.BAD_OFFLOAD: "what the virtio-net header says of the packet is not so, or none fits it (EINVAL)",
    DropReason.CONGESTION_LOST: "congestion was marked on a packet that cannot carry the mark (RFC 6040)",
    DropReason.NOT_UNICAST: "multicast or broadcast; of IPv6 either end link-local, loopback, :: or IPv4-mapped",
    DropReason.NO_ROUTE: "no lease covers the destination",
    DropReason.OWN_SUBNET: "the destination is in our own subnet, where nothing has this address",
    DropReason.LOOPED: "our own datagram to a peer came back: the peer's public IP leads into the tunnel device",
    DropReason.TTL_EXPIRED: "the time to live (IPv6: the hop limit) ran out",
    DropReason.UNKNOWN_PEER: "the sender's address is no registered peer's public IP",
    DropReason.SPOOFED_SOURCE: "the inner source lies in a lease that is not the sender's",
    DropReason.SPOOFED_MAC: "the frame inside VXLAN is not from the sender's MAC",
    DropReason.NOT_OUR_SUBNET: "the inner destination is not in our subnet",
    DropReason.LEASE_EXPIRED: "our lease ran out before the agent could renew it",
    DropReason.TOO_BIG: "larger than the underlay's path MTU (EMSGSIZE)",
    DropReason.UNREACHABLE: "the underlay has no way to the peer, or our address is gone (EHOSTUNREACH, EINVAL, …)",
    DropReason.REFUSED: "a firewall rule of this host forbids sending, or its connection tracking is full (EPERM)",
    DropReason.NO_MEMORY: "the kernel had no buffer left (ENOBUFS, ENOMEM)",
    DropReason.QUEUE_FULL: "the socket or the tunnel device stayed full (EAGAIN)",
    DropReason.DEVICE_DOWN: "the tunnel device or the external interface is down or gone",
    DropReason.SYSTEM_ERROR: "the kernel refused it for another reason",
}


cdef void count_drops(DirectionCounters *counters, DropReason reason, uint32_t n, const Packet *packet) noexcept nogil:
    cdef uint64_t written = counters.n_samples[<int> reason]
    cdef DropSample *sample = &counters.samples[<int> reason][written & <uint64_t> (SAMPLES_KEPT - 1)]
    cdef const Ipv4Header *ip = <const Ipv4Header *> packet_at(packet, 0, IPV4_HEADER_BYTES)
    cdef const Ipv6Header *ip6 = <const Ipv6Header *> packet_at(packet, 0, IPV6_HEADER_BYTES)
    cdef uint64_t addresses = 0
    cdef uint64_t rest = <uint64_t> min(packet.len, <uint32_t> 0xffff) << 32
    cdef bint has_ipv6 = ip6 != NULL and ip.version_ihl >> 4 == 6
    counters.drops[<int> reason] += n
    rest |= <uint32_t> OUTER_IS_IPV6 if packet.outer_addr6 != NULL else packet.outer_addr
    if has_ipv6:
        rest |= <uint64_t> ip6.next_header << 48 | <uint64_t> 6 << 56
    elif ip != NULL:
        addresses = <uint64_t> ip.src | <uint64_t> ip.dst << 32
        rest |= <uint64_t> ip.protocol << 48 | <uint64_t> (ip.version_ihl >> 4) << 56
    if counters.batch_time_ns == 0:
        counters.batch_time_ns = wall_clock_ns()
    store_word_relaxed(&sample.sequence, 2 * written + 1)
    fence_release()
    store_word_relaxed(&sample.time_ns, counters.batch_time_ns)
    store_word_relaxed(&sample.addresses, addresses)
    store_word_relaxed(&sample.rest, rest)
    if has_ipv6 or packet.outer_addr6 != NULL:
        store_ipv6_addresses(sample, ip6 if has_ipv6 else NULL, packet.outer_addr6)
    store_word_release(&sample.sequence, 2 * written + 2)
    counters.n_samples[<int> reason] = written + 1


cdef void store_ipv6_addresses(DropSample *sample, const Ipv6Header *ip, const uint8_t *outer) noexcept nogil:
    cdef uint64_t[<int> SAMPLE_WORDS6] addresses
    cdef uint32_t i
    memset(addresses, 0, sizeof(addresses))
    if ip != NULL:
        memcpy(&addresses[0], ip.src, 16)
        memcpy(&addresses[2], ip.dst, 16)
    if outer != NULL:
        memcpy(&addresses[4], outer, 16)
    for i in range(<uint32_t> SAMPLE_WORDS6):
        store_word_relaxed(&sample.addresses6[i], addresses[i])


cdef bint read_sample(const DropSample *sample, DropSample *copy) noexcept nogil:
    cdef uint32_t tries = 0
    cdef uint32_t i
    while tries < READ_TRIES:
        tries += 1
        copy.sequence = load_word_relaxed(&sample.sequence)
        fence_acquire()
        copy.time_ns = load_word_relaxed(&sample.time_ns)
        copy.addresses = load_word_relaxed(&sample.addresses)
        copy.rest = load_word_relaxed(&sample.rest)
        for i in range(<uint32_t> SAMPLE_WORDS6):
            copy.addresses6[i] = load_word_relaxed(&sample.addresses6[i])
        fence_acquire()
        if copy.sequence % 2 == 0 and load_word_relaxed(&sample.sequence) == copy.sequence:
            return copy.sequence != 0
    return False
