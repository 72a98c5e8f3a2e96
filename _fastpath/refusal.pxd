"""What the kernel means by refusing to send or write: the errno, a value that `sysio` returns, is judged only here."""

from libc.stdint cimport uint32_t

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
