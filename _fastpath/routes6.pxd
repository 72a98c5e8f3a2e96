"""IPv6's route list and table as Python has them. What engines see of a table is in `table6.pxd`."""

from flannel_udp._fastpath.table cimport Listed
from flannel_udp._fastpath.table6 cimport Route6, Table6, lookup6, peer_of6


cdef class RouteList6:
    cdef Route6 *rows
    cdef Listed listed


cdef class RouteTable6:
    cdef Table6 table           # the engines read it while they hold a reference to this object
    cdef int n_engines          # that hold it: while there are any, nobody may write
