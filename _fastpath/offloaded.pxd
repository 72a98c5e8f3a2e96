"""What a kernel peer left to a network card that was not there.

The kernel's tunnels leave checksums only begun, and TCP segments uncut, for the network card to finish. Between virtual
machines and namespaces of one host (veth, virtio) there is none: the datagram arrives as it was handed over, and the
socket says nothing of it, but for UDP super-packets (`encap_vxlan`). What the kernel joins on the way in (GRO) looks
alike. The TUN takes all of that as a network card would: see `describe_offload`.
"""

from flannel_udp._fastpath.datapath cimport Datapath
from flannel_udp._fastpath.packet cimport Packet
from flannel_udp._fastpath.wire cimport VirtioNetHeader

cdef enum:
    INNER_MTU_UNTOLD = 1280     # as long as nobody has said what the TUN's MTU is: what every tunnel of ours has
    # Nobody says how long the sender's segments were. Those of a pod whose MTU is below the tunnel's are shorter than
    # that allows, and what is longer its host would not pass on.
    CUT_MAX = 1280

# Set `partial` and `gso_size` of an IPv4 packet that is accepted, and count it where they are not 0. `gso_size` says
# before what the kernel said.
cdef void recognise_offload(Datapath *dp, Packet *packet) noexcept nogil

# Likewise of an IPv6 packet.
cdef void recognise_offload6(Datapath *dp, Packet *packet) noexcept nogil

# Fill in the virtio-net header (zeros before) for a packet whose `partial` is set.
cdef void describe_offload(const Packet *packet, VirtioNetHeader *vnet) noexcept nogil
