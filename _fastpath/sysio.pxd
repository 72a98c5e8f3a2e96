"""Every system call of the packet path. None of them waits: what a full queue does not take is lost and counted."""

from libc.stdint cimport uint8_t, uint32_t

from flannel_udp._fastpath.datapath cimport Datapath
from flannel_udp._fastpath.packet cimport Packet
from flannel_udp._fastpath.sockets cimport mmsghdr
from flannel_udp._fastpath.wire cimport VirtioNetHeader, be32

# Read one packet, or super-packet, and its virtio-net header (zero where the TUN has none); False when none waits.
cdef bint tun_read(Datapath *dp, VirtioNetHeader *vnet, Packet *packet) noexcept nogil

# Send as many messages as go; return how many, or -1 and errno where the first did not.
cdef int send_messages(Datapath *dp, mmsghdr *messages, uint32_t n) noexcept nogil

# Whether the kernel may fragment what is too big for the path (IP_PMTUDISC_DONT) or must refuse it (IP_PMTUDISC_DO).
cdef void set_path_mtu_discovery(Datapath *dp, int mode) noexcept nogil

# Fill dp.bundles with what waits at the socket. Where the kernel refuses to give it, a pause of a millisecond is made.
cdef void udp_receive(Datapath *dp) noexcept nogil

# Write the queue to the TUN, a system call a write, and clear it; count what was taken and what was not.
cdef void tun_write(Datapath *dp) noexcept nogil

# Return the path MTU (bytes, outer headers included) that the kernel knows of, 0 where it knows none.
cdef uint32_t query_path_mtu(be32 addr) noexcept nogil

# Hand a complete IPv4 packet to the host's own routing.
cdef void icmp_send(Datapath *dp, const uint8_t *packet, uint32_t n_bytes, be32 dst) noexcept nogil
