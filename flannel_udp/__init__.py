"""flannel's agent in Python and Cython: its udp backend as a userspace dataplane, and those that the kernel carries."""

__version__ = "0.1.0"
