"""flannel's udp backend as a userspace dataplane in Python and Cython."""

__version__ = "0.1.0"
