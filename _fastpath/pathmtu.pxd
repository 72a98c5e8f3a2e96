"""How large an inner packet may be on the way to a peer, where the interface's MTU is too much.

Two know: the kernel and the control plane.

The socket sends with "don't fragment" (IP_PMTUDISC_DO): the kernel keeps what routers tell (RFC 1191) and answers
EMSGSIZE. The limit is asked from it then, kept with the peer and told to senders by ICMP. What may be fragmented and is
larger is sent without the bit. It is asked by a socket of its own; where rules by TOS, port or protocol lead packets
another way, what is refused goes with what that says, so the lane is asked that refused it (`transmit.fit_to_path`).

The kernel's own entry ends when it will: after ten minutes (net.ipv4.route.mtu_expires), with a change of the routes or
of an interface's MTU. So ours is asked anew every few seconds while packets exceed it, which costs the one packet that
is sent to meet EMSGSIZE again, and at once after `Engine.forget_path_mtus`.

What is lost without a word only the agent's probes find (RFC 8899): `Engine.limit_path_mtu` says what they found, until
it says otherwise. The kernel would not cut outer packets to that: `fragment` cuts inner ones. Probes themselves pass.

No IPv6 packet may be cut but by its sender, who is told what fits (RFC 8201), never less than 1,280 bytes. Where a path
carries less, the datagrams of such packets are fragmented instead (RFC 2473 section 7.1).
"""

from libc.stdint cimport uint32_t, uint64_t

from flannel_udp._fastpath.atomics cimport load_word
from flannel_udp._fastpath.datapath cimport Datapath, PeerState, state_of
from flannel_udp._fastpath.packet cimport Packet

cdef enum:
    # Identifier of the agent's ICMP echoes, in host order: others may have it too, and then cost a packet or two.
    PROBE_ID = 0x8285


cdef inline bint exceeds_path_mtu(Datapath *dp, uint32_t peer, uint32_t n_bytes) noexcept nogil:
    """Whether an inner packet of `n_bytes` is larger than the path to the peer is known to carry."""
    cdef uint64_t limit = load_word(&state_of(dp, peer).inner_mtu)
    return limit != 0 and n_bytes > limit and still_exceeds(dp, peer, n_bytes)


cdef inline uint32_t path_mtu(Datapath *dp, uint32_t peer) noexcept nogil:
    """Bytes that an inner packet may have on the way to the peer; 0: no limit has been met."""
    return <uint32_t> load_word(&state_of(dp, peer).inner_mtu)

# The same as `exceeds_path_mtu`, after what is the index's former peer's, or may not be so any more, is forgotten.
cdef bint still_exceeds(Datapath *dp, uint32_t peer, uint32_t n_bytes) noexcept nogil

# Ask the kernel for the path MTU to the peer and keep it; False where it does not tell.
cdef bint learn_path_mtu(Datapath *dp, uint32_t peer) noexcept nogil

# Keep what the path to the peer carries, outer headers included, as was asked in this epoch (`dp.path_epoch`).
cdef void keep_path_mtu(Datapath *dp, uint32_t peer, uint32_t outer_mtu, uint64_t epoch) noexcept nogil

# What the agent's probes found that the path to the peer carries; 0: no limit.
cdef uint32_t probed_mtu(const Datapath *dp, uint32_t peer) noexcept nogil

# Have that limit for the peer of this tag (`encapsulation.peer_tag`), 0: none. From any thread.
cdef void set_probed_mtu(PeerState *state, uint32_t tag, uint32_t n_bytes) noexcept nogil

# The same of a peer index while it is the peer's that has this underlay address, a number in host order.
cdef int limit_path(Datapath *dp, uint32_t peer, object address, uint32_t n_bytes) except -1

# Whether it is an ICMP echo of the agent's, or the answer to one. The inner header is right.
cdef bint is_probe(const Packet *packet) noexcept nogil
