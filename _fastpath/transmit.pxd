"""The send queue goes out."""

from flannel_udp._fastpath.datapath cimport Datapath

# Send the queue's runs, each with one message, and clear it; count what was sent and what was not.
cdef void transmit(Datapath *dp) noexcept nogil
