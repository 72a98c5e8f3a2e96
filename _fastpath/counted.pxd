"""What a datapath has counted, as Python has it. Read while the engine's thread writes: whole 64-bit words."""

from libc.stdint cimport uint32_t

from flannel_udp._fastpath.datapath cimport Datapath

# Return what `Engine.counters` does.
cdef dict counters_as_dict(const Datapath *dp)

# Return what `Engine.drop_samples` does.
cdef list samples_as_rows(const Datapath *dp)

# See `Engine.peer_counters`, and `Engine.sample_peers`.
cdef tuple peer_counters_as_tuple(Datapath *dp, uint32_t peer)
cdef list active_peers(Datapath *dp, uint32_t first, uint32_t n)
