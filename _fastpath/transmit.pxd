"""The send queue goes out to the underlay; `deliver` is its counterpart."""

from flannel_udp._fastpath.datapath cimport Datapath

# Send the queue's runs, each as one message, and clear it; count what was sent and what was not.
cdef void transmit(Datapath *dp) noexcept nogil
