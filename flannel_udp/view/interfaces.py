"""What a network namespace's interfaces are like, and what passed them: asked without a process, and held nowhere."""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from flannel_udp.errors import FlannelError
from flannel_udp.lab import netns
from flannel_udp.lab.links import Interfaces
from flannel_udp.lab.node import Node

_SIOCGIFFLAGS, _SIOCGIFMTU = 0x8913, 0x8921  # <linux/sockios.h>
_IFF_UP = 0x1  # <linux/if.h>
_COUNTERS = Path("/proc/thread-self/net/dev")  # proc_pid_net(5)


class Interface(NamedTuple):
    """An interface and its counters, since it was made."""

    up: bool
    """Administratively."""
    mtu: int
    rx_bytes: int
    rx_packets: int
    rx_dropped: int
    tx_bytes: int
    tx_packets: int
    tx_dropped: int


def look(nodes: Iterable[Node]) -> dict[str, dict[str, Interface]]:
    """Return the interfaces of each node, by its path. Raises `FlannelError` where a namespace is gone.

    One thread goes from namespace to namespace, and is in none of them afterwards: a lab can be taken down at any time.
    """
    wanted = list(nodes)

    def visit() -> dict[str, dict[str, Interface]]:
        found = {}
        for node in wanted:
            netns.enter(node.namespace)
            found[node.path] = _here()
        return found

    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(visit).result()


def as_ip_says(interfaces: Mapping[str, Interface]) -> Interfaces:
    """Return the same in the words of `ip -json link`, as far as `lab.links` asks for them."""
    return {name: {"flags": ["UP"] if one.up else [], "mtu": one.mtu} for name, one in interfaces.items()}


def _here() -> dict[str, Interface]:
    """Return those of the namespace that the calling thread is in."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for line in _COUNTERS.read_text().splitlines()[2:]:
            name, _, rest = line.partition(":")
            name, counts = name.strip(), [int(word) for word in rest.split()]
            try:
                up = bool(_ask(sock, _SIOCGIFFLAGS, name, "H") & _IFF_UP)
                mtu = _ask(sock, _SIOCGIFMTU, name, "i")
            except OSError as error:
                if error.errno == errno.ENODEV:  # it has gone since the line was written
                    continue
                raise FlannelError(f"cannot ask for the interface {name}: {error.strerror}") from None
            rx_bytes, rx_packets, _, rx_dropped, _, _, _, _, tx_bytes, tx_packets, _, tx_dropped = counts[:12]
            found[name] = Interface(up, mtu, rx_bytes, rx_packets, rx_dropped, tx_bytes, tx_packets, tx_dropped)
    return found


def _ask(sock: socket.socket, question: int, name: str, kind: str) -> int:
    """Return what a struct ifreq (netdevice(7)) has behind the name."""
    answer = fcntl.ioctl(sock, question, struct.pack("16s24x", name.encode()))
    return int(struct.unpack_from(f"={kind}", answer, 16)[0])
