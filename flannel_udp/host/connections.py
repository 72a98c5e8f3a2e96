"""TCP connections of this process from an address that the host no longer has."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

from flannel_udp.model import Address

_DESCRIPTORS = Path("/proc/self/fd")


def abandon_connections(address: Address) -> int:
    """Shut down what is connected from `address`, so that its owner connects anew; return how many there were.

    TCP does not learn that its address is gone: a registry's connection would hang until its keep-alive gives up. The
    descriptors stay their owners', who read the end of the stream.
    """
    n = 0
    for entry in list(_DESCRIPTORS.iterdir()):  # all first, or it would find the copies too
        # What is suppressed: closed meanwhile, or not connected (getpeername says so).
        with suppress(OSError), _copy_of(int(entry.name)) as ours:
            if ours.type == socket.SOCK_STREAM and _is(ours.getsockname(), address) and ours.getpeername():
                ours.shutdown(socket.SHUT_RDWR)
                n += 1
    return n


def _copy_of(number: int) -> socket.socket:
    """Return a socket of our own for that descriptor. Raises OSError if there is none, or it is no socket."""
    copy = os.dup(number)
    try:
        return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise


def _is(name: object, address: Address) -> bool:
    """Compare a socket's own name; sockets for both families write an IPv4 address as ::ffff:192.0.2.1."""
    if not isinstance(name, tuple):
        return False
    local = ip_address(name[0].partition("%")[0])
    return address in (local, getattr(local, "ipv4_mapped", None))
