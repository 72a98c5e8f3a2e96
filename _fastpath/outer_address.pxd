"""Where packets for a next hop go: the underlay address of the peer, by family."""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memset

from flannel_udp._fastpath.datapath cimport Datapath
from flannel_udp._fastpath.family cimport FAMILY_6, Family
from flannel_udp._fastpath.packet cimport Packet
from flannel_udp._fastpath.sockets cimport AF_INET, AF_INET6, SocketAddress, sockaddr_in, sockaddr_in6
from flannel_udp._fastpath.table cimport FIRST_PEER, Table
from flannel_udp._fastpath.table6 cimport Table6, be128, hash_addr6
from flannel_udp._fastpath.wire cimport be32


cdef inline be32 outer_address(const Table *table, uint32_t next_hop) noexcept nogil:
    """Return the underlay address that datagrams for this next hop go to."""
    return table.peer_addr[next_hop]


cdef inline const uint8_t *outer_address6(const Table6 *table, uint32_t next_hop) noexcept nogil:
    """Likewise of IPv6: 16 bytes in network order."""
    return <const uint8_t *> &table.peer_addr[next_hop]


cdef inline uint32_t tag_of6(const uint8_t *address) noexcept nogil:
    """Return 32 bits of an IPv6 address, all of it mixed. Two peers that share them share what one path carries."""
    cdef be128 addr
    memcpy(&addr, address, sizeof(addr))
    return hash_addr6(addr)


cdef inline uint32_t peer_tag(const Datapath *dp, uint32_t next_hop) noexcept nogil:
    """Return what tells the peers apart that an index may have one after the other."""
    if dp.family == FAMILY_6:
        return tag_of6(outer_address6(dp.table6, next_hop))
    return outer_address(dp.table, next_hop)


cdef inline void name_outer_end(Datapath *dp, Family family, Packet *packet) noexcept nogil:
    """Note with a packet that goes out the underlay address of its next hop."""
    if family == FAMILY_6:
        packet.outer_addr = 0
        packet.outer_addr6 = outer_address6(dp.table6, packet.next_hop) if packet.next_hop >= FIRST_PEER else NULL
    else:
        packet.outer_addr = outer_address(dp.table, packet.next_hop)
        packet.outer_addr6 = NULL


cdef inline uint32_t write_address(const Datapath *dp, uint32_t next_hop, SocketAddress *place) noexcept nogil:
    """Write where datagrams for this next hop go, for the socket; return the bytes of that."""
    if dp.family == FAMILY_6:
        memset(&place.v6, 0, sizeof(place.v6))      # no flow label, no scope
        place.v6.sin6_family = AF_INET6
        place.v6.sin6_port = dp.port
        memcpy(&place.v6.sin6_addr, outer_address6(dp.table6, next_hop), sizeof(place.v6.sin6_addr))
        return sizeof(sockaddr_in6)
    place.v4.sin_family = AF_INET
    place.v4.sin_port = dp.port
    place.v4.sin_addr.s_addr = outer_address(dp.table, next_hop)
    return sizeof(sockaddr_in)
