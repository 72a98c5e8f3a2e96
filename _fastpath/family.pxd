"""The IP version of the packets that a datapath carries, inside and outside: IPv6 travels over IPv6 alone."""

cdef enum Family:
    FAMILY_4 = 4
    FAMILY_6 = 6
