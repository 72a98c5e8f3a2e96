"""Header layouts and kernel ABI constants. be16 and be32 are in network order, plain integers in the host's."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

ctypedef uint16_t be16
ctypedef uint32_t be32

cdef extern from "<arpa/inet.h>" nogil:
    uint16_t ntohs(be16 value)
    uint32_t ntohl(be32 value)
    be16 htons(uint16_t value)
    be32 htonl(uint32_t value)

# IPv4 header, RFC 791 section 3.1
#
#    0                   1                   2                   3
#    0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |Version|  IHL  |      TOS      |         Total Length          |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |         Identification        |Flags|     Fragment Offset     |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |      TTL      |   Protocol    |        Header Checksum        |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |                        Source Address                         |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |                      Destination Address                      |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
cdef packed struct Ipv4Header:
    uint8_t version_ihl     # version << 4 | header length in 32-bit words
    uint8_t tos
    be16 total_len          # bytes, header included
    be16 id
    be16 frag               # flags << 13 | offset in units of 8 bytes
    uint8_t ttl
    uint8_t protocol
    be16 checksum           # RFC 1071 over the header
    be32 src
    be32 dst

# IPv6 header, RFC 8200 section 3
#
#    0                   1                   2                   3
#    0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |Version| Traffic Class |           Flow Label                  |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |         Payload Length        |  Next Header  |   Hop Limit   |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |                   Source Address, 128 bits                    |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |                Destination Address, 128 bits                  |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
cdef packed struct Ipv6Header:
    be32 version_class_flow
    be16 payload_len        # bytes behind this header, extension headers included
    uint8_t next_header     # what is behind it: an extension header, or the transport
    uint8_t hop_limit
    uint8_t[16] src         # network order
    uint8_t[16] dst

# Fragment header, RFC 8200 section 4.5
cdef packed struct FragmentHeader:
    uint8_t next_header
    uint8_t reserved
    be16 offset             # in units of 8 bytes << 3 | reserved bits | more fragments
    be32 id

# ICMP error messages, RFC 792; next-hop MTU, RFC 1191 section 4
#
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |     Type      |     Code      |           Checksum            |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |            unused             |   Next-Hop MTU (type 3/4)     |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |  the offending packet's IP header and the start of its data   |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
cdef packed struct IcmpHeader:
    uint8_t type
    uint8_t code
    be16 checksum
    be16 unused
    be16 next_hop_mtu

# ICMPv6 error messages, RFC 4443 section 3: likewise, but the MTU is where type 2 (packet too big) has it
cdef packed struct Icmp6Header:
    uint8_t type
    uint8_t code
    be16 checksum           # pseudo-header, header, the quoted packet
    be32 mtu                # else unused

# TCP header, RFC 9293 section 3.1
#
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |          Source Port          |       Destination Port        |
#   |                        Sequence Number                        |
#   |                    Acknowledgment Number                      |
#   | Offset| Rsrvd |C E U A P R S F|            Window             |
#   |           Checksum            |         Urgent Pointer        |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
cdef packed struct TcpHeader:
    be16 src_port
    be16 dst_port
    be32 seq
    be32 ack
    uint8_t data_offset     # header length in 32-bit words << 4 | reserved bits | AE (RFC 9768)
    uint8_t flags           # CWR 0x80 … FIN 0x01
    be16 window
    be16 checksum           # pseudo-header, header, payload
    be16 urgent

# UDP header, RFC 768
cdef packed struct UdpHeader:
    be16 src_port
    be16 dst_port
    be16 len                # header included
    be16 checksum           # 0: the sender made none; a sum of 0 goes out as 0xffff

# VXLAN header, RFC 7348 section 5
#
#    0                   1                   2                   3
#    0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |R|R|R|R|I|R|R|R|            Reserved                           |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#   |                VXLAN Network Identifier (VNI) |   Reserved    |
#   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
cdef packed struct VxlanHeader:
    be32 flags              # VXLAN_VNI_VALID; what is reserved is sent as zero and ignored
    be32 vni                # << 8

# Ethernet header, RFC 894; without a frame check sequence (RFC 7348 section 5)
cdef packed struct EthernetHeader:
    uint8_t[6] dst
    uint8_t[6] src
    be16 type               # ETHERTYPE_IPV4, ETHERTYPE_IPV6

# What VXLAN puts in front of an inner packet.
cdef packed struct VxlanHeading:
    VxlanHeader vxlan
    EthernetHeader ethernet

# In front of each packet on a TUN with IFF_VNET_HDR; native byte order (linux/virtio_net.h, struct virtio_net_hdr)
cdef packed struct VirtioNetHeader:
    uint8_t flags
    uint8_t gso_type
    uint16_t hdr_len
    uint16_t gso_size
    uint16_t csum_start
    uint16_t csum_offset

cdef extern from *:
    """
    #define wire_size_is(size, bytes) _Static_assert((size) == (bytes), "wire.pxd: a struct has not its wire size")
    """
    void wire_size_is(size_t size, size_t bytes) noexcept nogil

cdef inline void check_sizes() noexcept nogil:
    """Fail the C compiler, not the program, when a layout above is off."""
    wire_size_is(sizeof(Ipv4Header), 20)
    wire_size_is(sizeof(Ipv6Header), IPV6_HEADER_BYTES)
    wire_size_is(sizeof(FragmentHeader), FRAGMENT_HEADER_BYTES)
    wire_size_is(sizeof(IcmpHeader), 8)
    wire_size_is(sizeof(Icmp6Header), 8)
    wire_size_is(sizeof(TcpHeader), 20)
    wire_size_is(sizeof(UdpHeader), 8)
    wire_size_is(sizeof(VxlanHeader), 8)
    wire_size_is(sizeof(EthernetHeader), 14)
    wire_size_is(sizeof(VxlanHeading), VXLAN_HEADING_BYTES)
    wire_size_is(sizeof(VirtioNetHeader), 10)

cdef enum:
    IPV4_HEADER_BYTES = 20      # without options
    IPV4_MAX_BYTES = 65535      # total_len is 16 bits wide
    DONT_FRAGMENT = 0x4000
    MORE_FRAGMENTS = 0x2000
    FRAG_OFFSET_MASK = 0x1fff
    IPV6_HEADER_BYTES = 40      # without extension headers
    IPV6_MTU_MIN = 1280         # RFC 8200 section 5: every link carries that much
    FRAGMENT_HEADER_BYTES = 8
    FRAGMENT6_OFFSET_MASK = 0xfff8
    HOP_BY_HOP_HEADER = 0       # RFC 8200 section 4: the extension headers, numbered with the protocols
    ROUTING_HEADER = 43
    FRAGMENT_HEADER = 44
    AUTHENTICATION_HEADER = 51  # RFC 4302
    DESTINATION_HEADER = 60
    NO_NEXT_HEADER = 59
    PROTOCOL_ICMP = 1           # RFC 790
    PROTOCOL_IPIP = 4           # RFC 2003
    PROTOCOL_TCP = 6
    PROTOCOL_UDP = 17
    PROTOCOL_ICMP6 = 58         # RFC 4443
    TCP_HEADER_BYTES = 20       # without options
    TCP_FIN = 0x01
    TCP_PSH = 0x08
    TCP_ACK = 0x10
    TCP_ECE = 0x40
    TCP_CWR = 0x80
    TCP_CHECKSUM_OFFSET = 16    # bytes into the header
    UDP_HEADER_BYTES = 8
    UDP_CHECKSUM_OFFSET = 6
    UDP_PAYLOAD_MAX_BYTES = 65507  # 65535 less IPv4 and UDP headers
    VXLAN_HEADING_BYTES = 22
    VXLAN_VNI_VALID = 0x08000000    # host order: the flag I
    VXLAN_VNI_MASK = 0xffffff00     # likewise
    ETHERTYPE_IPV4 = 0x0800
    ETHERTYPE_IPV6 = 0x86dd         # RFC 2464 section 3

# linux/virtio_net.h
cdef enum:
    VNET_NEEDS_CSUM = 1         # flags: fill in the checksum at csum_start + csum_offset, over csum_start to the end
    VNET_GSO_NONE = 0
    VNET_GSO_TCPV4 = 1
    VNET_GSO_TCPV6 = 4
    VNET_GSO_UDP_L4 = 5         # of either IP version
    VNET_GSO_ECN = 0x80         # with TCPV4 or TCPV6: CWR is set
