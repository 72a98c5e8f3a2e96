"""Every system call of the packet path. None of them blocks, but for one short wait where a queue is full."""

from libc.stdint cimport uint8_t, uint32_t

from flannel_udp._fastpath.datapath cimport Datapath
from flannel_udp._fastpath.packet cimport Batch
from flannel_udp._fastpath.wire cimport be32

# Fill the batch from the TUN until it is empty or the batch full. The virtio-net header stays in front of each packet.
cdef void tun_read(Datapath *dp, Batch *batch) noexcept nogil

# Write the packets to the TUN, virtio-net header first where it wants one; count what was not taken.
cdef void tun_write(Datapath *dp, Batch *batch) noexcept nogil

# Fill the batch with the datagrams that wait at the socket and note the sender of each.
cdef void udp_receive(Datapath *dp, Batch *batch) noexcept nogil

# Send each packet to its outer address; count what was sent and what was not.
cdef void udp_send(Datapath *dp, Batch *batch) noexcept nogil

# Hand a complete IPv4 packet to the host's own routing.
cdef void icmp_send(Datapath *dp, const uint8_t *packet, uint32_t n_bytes, be32 dst) noexcept nogil
