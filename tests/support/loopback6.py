"""IPv6 sockets between which several addresses lie, no root needed: a host's own loopback interface has ::1 alone.

The sockets are made in a network namespace of their own by a short-lived process, and handed over; they work like any
other, and the namespace goes with the last of them.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence

MTU_BYTES = 65_575
"""The longest packet that IPv6 has without jumbograms, so that every datagram fits."""
_NEW_NAMESPACE = ("unshare", "--net", *(() if os.geteuid() == 0 else ("--map-root-user",)))
_HAND_OVER = """
import socket, sys, time
number, *addresses = sys.argv[1:]
wanted = {socket.inet_pton(socket.AF_INET6, address).hex() for address in addresses}
while True:  # an address has its route from a work queue of the kernel's, a moment later
    with open("/proc/net/ipv6_route") as routes:
        rows = [row.split() for row in routes]
    if wanted <= {row[0] for row in rows if int(row[8], 16) & 0x80000000}:  # RTF_LOCAL
        break
    time.sleep(0.001)
made = [socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) for _ in range(int(number))]
socket.send_fds(socket.socket(fileno=0), [b"x"], [each.fileno() for each in made])
"""


def open_ipv6_sockets(addresses: Sequence[str], n: int) -> list[socket.socket]:
    """Return `n` unbound UDP sockets of a new namespace whose loopback interface has these addresses."""
    set_up = [f"link set lo up mtu {MTU_BYTES}", *(f"address add {address}/128 dev lo nodad" for address in addresses)]
    inside = 'printf \'%s\\n\' "$1" | ip -batch - && shift && exec "$@"'
    hand_over = [sys.executable, "-I", "-S", "-c", _HAND_OVER, str(n), *addresses]
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with near, far:
        subprocess.run(
            [*_NEW_NAMESPACE, "sh", "-c", inside, "sh", "\n".join(set_up), *hand_over],
            stdin=far.fileno(),
            check=True,
            timeout=60,
            env={"PATH": os.environ["PATH"]},  # without what a sanitizer or a fuzzer loads in front
        )
        _, descriptors, _, _ = socket.recv_fds(near, 1, n)
    return [socket.socket(fileno=descriptor) for descriptor in descriptors]
