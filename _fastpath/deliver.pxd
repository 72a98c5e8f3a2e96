"""The write queue goes out to the TUN; `transmit` is its counterpart."""

from flannel_udp._fastpath.datapath cimport Datapath

# Write the queue's packets and super-packets, each with one system call, and clear it; count what was taken.
cdef void deliver(Datapath *dp) noexcept nogil
