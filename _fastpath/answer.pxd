"""What a dropped packet's sender hears: an ICMP error, rate-limited, through the host's own routing."""

from flannel_udp._fastpath.datapath cimport Datapath
from flannel_udp._fastpath.drops cimport DropReason
from flannel_udp._fastpath.packet cimport Packet

cdef void answer_sender(Datapath *dp, const Packet *packet, DropReason reason) noexcept nogil
