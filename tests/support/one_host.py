"""One host in a network namespace of its own, for tests of what we do to its routes and addresses."""

from __future__ import annotations

import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from flannel_udp.host.monitor import open_monitor_socket
from flannel_udp.lab import netns
from tests.support.labs import fresh_name
from tests.support.patience import PATIENCE_S

_KINDS = {  # linux/rtnetlink.h; an entry is a neighbour, or one of a forwarding table
    20: "new address",
    21: "deleted address",
    24: "new route",
    25: "deleted route",
    28: "new entry",
    29: "deleted entry",
}
_ENTRIES = (28, 29)
_NUD_NOARP = 0x40  # linux/neighbour.h
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h
T = TypeVar("T")


class News:
    """What the kernel told of changed addresses, routes and entries, in order, since this was made or last asked.

    Of entries only those of the device with the index `entries_of`, where it is given: of others (eth0's neighbours)
    the kernel forgets one whenever it likes. So it does of those that it makes for groups (ff02::16) on any device.
    """

    def __init__(self, monitor: socket.socket, entries_of: int | None = None) -> None:
        self._monitor = monitor
        self._entries_of = entries_of
        monitor.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 32 << 20)

    def __call__(self) -> list[str]:
        told: list[str] = []
        while True:
            try:
                datagram = self._monitor.recv(65_536)
            except BlockingIOError:
                return told
            while datagram:
                length, kind = struct.unpack_from("=IH", datagram)
                if kind in _KINDS and not (kind in _ENTRIES and self._is_nobodys(datagram)):
                    told.append(_KINDS[kind])
                datagram = datagram[(length + 3) & ~3 :]

    def _is_nobodys(self, entry: bytes) -> bool:
        index, state = struct.unpack_from("=iH", entry, 20)  # of struct ndmsg (linux/neighbour.h), behind the header
        return self._entries_of not in (None, index) or state == _NUD_NOARP


class OneHost:
    """A network namespace, empty but for `lo`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def ip(self, *lines: str) -> None:
        """Run lines of `ip` inside."""
        netns.ip_batch(lines, namespace=self.name)

    def add_links(self, index: int) -> None:
        """Make eth0 with this index, and eth1, both up; nobody is at their other ends."""
        self.add_link("eth0", index)
        self.add_link("eth1", index + 1)

    def add_link(self, name: str, index: int) -> None:
        """Make one end of a veth that is up, without a link-local address; nobody is at its other end, `far…`."""
        far = name.replace("eth", "far")
        self.ip(
            f"link add {name} index {index} type veth peer name {far}",
            f"link set {name} addrgenmode none",
            f"link set {far} addrgenmode none",
            f"link set {far} up",
            f"link set {name} up",
        )
        # Until then the kernel has news of the link, its own routes among them, for which all that listens asks again.
        for link in (name, far):
            assert netns.wait_until(partial(self._is_settled, link), PATIENCE_S)

    def _is_settled(self, link: str) -> bool:
        is_up = "state UP" in self.show(f"link show {link}")[0]
        return is_up and self.show(f"-6 route show table local dev {link}")[-1:] != []

    def show(self, command: str) -> list[str]:
        """Return the lines that an `ip` command prints inside."""
        argv = ["ip", "-n", self.name, *command.split()]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
        return [line.strip() for line in done.stdout.splitlines()]

    def routes(self, of: str = "") -> list[str]:
        """Return the main table's routes, without those that came with an address."""
        return [line for line in self.show(f"-4 route show {of}") if "proto kernel" not in line]

    def call(self, function: Callable[..., T], *arguments: object) -> T:
        """Run a function inside, on a thread of its own."""
        return netns.call_inside(self.name, partial(function, *arguments))

    def udp(self, address: str = "0.0.0.0") -> socket.socket:
        """Return a UDP socket inside, bound to the address; whoever asked closes it."""
        sock = self.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((address, 0))
        sock.settimeout(PATIENCE_S)
        return sock

    @contextmanager
    def news(self) -> Iterator[News]:
        with self.call(open_monitor_socket) as monitor:
            yield News(monitor)


@contextmanager
def one_host() -> Iterator[OneHost]:
    """Make an empty namespace with `lo` up, and remove it at the end."""
    host = OneHost(fresh_name())
    netns.ip_batch([f"netns add {host.name}"])
    try:
        host.ip("link set lo up")
        yield host
    finally:
        netns.ip_batch([f"netns delete {host.name}"])
