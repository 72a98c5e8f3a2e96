"""flannel's udp encapsulation: the inner packet is the whole datagram, so all there is to choose is the address."""

from flannel_udp._fastpath.packet cimport Batch
from flannel_udp._fastpath.routes cimport Table

# Address each packet of the batch to its next hop's underlay address.
cdef void encapsulate_udp(const Table *table, Batch *batch) noexcept nogil
