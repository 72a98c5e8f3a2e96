"""What would become of a packet, see `trial.pyx`; for `engine`, which hands over its state and the table in force."""

from flannel_udp._fastpath.datapath cimport Datapath

# Try a packet as if it were read from the TUN; `table` is the one in force, a RouteTable or a RouteTable6.
cdef tuple try_packet(const Datapath *dp, object table, bytes packet)

# Try what our socket reads of a datagram: from that underlay address (4 or 16 bytes), with that outer TOS byte.
cdef tuple try_datagram(const Datapath *dp, object table, bytes datagram, bytes sender, int tos)
