"""What a datapath has counted, as Python has it. Read while the engine's thread writes: whole 64-bit words."""

from flannel_udp._fastpath.datapath cimport Datapath

# Return what `Engine.counters` does.
cdef dict counters_as_dict(const Datapath *dp)

# Return what `Engine.drop_samples` does.
cdef list samples_as_rows(const Datapath *dp)
