"""What the kernel means by refusing a packet: the errno is judged only here.

Of what goes out it is a value that `sysio` returns.
"""

from libc.stdint cimport uint32_t

from flannel_udp._fastpath.datapath cimport Datapath
from flannel_udp._fastpath.drops cimport DropReason

cdef enum Remedy:
    DROP                    # nothing helps: what was refused is lost
    SEND_SINGLY             # a run of packets is too big for the path: see which of them is
    STOP_SEGMENTING         # a run cannot be cut on the peer's route: singly, and no runs to it for a while
    FIT_TO_PATH             # a packet is too big for the path: have it fragmented, or tell its sender
    WRITE_SINGLY            # a super-packet finds no memory: its segments may
    STOP_JOINING            # the kernel takes no super-packet of that kind: singly, and none joined for a while

cdef struct Refusal:
    Remedy remedy
    DropReason reason       # of what is lost

# Judge the errno with which the socket refused a message of `n_packets`.
cdef Refusal classify_send(int error, uint32_t n_packets) noexcept nogil

# Judge the errno with which the TUN refused a packet, or a super-packet of `n_packets`.
cdef Refusal classify_write(int error, uint32_t n_packets) noexcept nogil

# Count a packet that was lost as the TUN answered a read with EINVAL; return whether to read on in this turn. It is not
# beside `tun_read`, which the compiler would make larger by it, and slower for every packet.
cdef bint count_lost_read(Datapath *dp) noexcept nogil
