"""flannel's udp encapsulation: the inner packet is the whole datagram."""

cdef enum:
    UDP_OUTER_BYTES = 28        # IPv4 and UDP
