"""Every system call of the packet path but the engine's epoll_wait. None of them blocks.

What sends inner packets returns the errno of a refusal as a value, negated; `refusal` judges it.
"""

from libc.stdint cimport uint8_t, uint32_t

from flannel_udp._fastpath.datapath cimport Datapath
from flannel_udp._fastpath.packet cimport Packet
from flannel_udp._fastpath.sockets cimport iovec, mmsghdr
from flannel_udp._fastpath.wire cimport VirtioNetHeader, be16, be32

# Read one packet, or super-packet, and its virtio-net header (zero where the TUN has none); False when none waits.
cdef bint tun_read(Datapath *dp, VirtioNetHeader *vnet, Packet *packet) noexcept nogil

# Write the pieces as one packet or super-packet; return how many bytes, or the negated errno where the TUN refused it.
cdef int tun_write(Datapath *dp, const iovec *pieces, int n) noexcept nogil

# Send as many messages as go on a lane; return how many, or the negated errno where the socket refused the first.
cdef int udp_send(Datapath *dp, uint32_t lane, mmsghdr *messages, uint32_t n) noexcept nogil

# Whether the kernel may fragment what is too big for the path (IP_PMTUDISC_DONT) or must refuse it (IP_PMTUDISC_DO).
cdef void set_path_mtu_discovery(const Datapath *dp, uint32_t lane, int mode) noexcept nogil

# Fill dp.bundles with what waits at the socket. Where the kernel refuses to give it, a pause of a millisecond is made.
cdef void udp_receive(Datapath *dp) noexcept nogil

# Return the path MTU to a peer (bytes, outer headers included) that the kernel knows of, 0 where it knows none.
cdef uint32_t query_path_mtu(const Datapath *dp, uint32_t peer) noexcept nogil

# Send one message once more that a lane has refused for its size, and have the kernel say what is the path MTU of such
# packets, 0 where it does not. Return as `udp_send`: it may be sent by now.
cdef int send_asking(Datapath *dp, uint32_t lane, mmsghdr *message, uint32_t *mtu) noexcept nogil

# Keep the address that the datapath's socket is bound to; none: zeros.
cdef void learn_own_address(Datapath *dp) noexcept nogil

# Return the port that a socket is bound to, or 0.
cdef be16 port_of(int fd) noexcept nogil

# Hand a complete IPv4 packet to the host's own routing.
cdef void icmp_send(Datapath *dp, const uint8_t *packet, uint32_t n_bytes, be32 dst) noexcept nogil

# Likewise an IPv6 packet; `dst` has 16 bytes in network order.
cdef void icmp_send6(Datapath *dp, const uint8_t *packet, uint32_t n_bytes, const uint8_t *dst) noexcept nogil
