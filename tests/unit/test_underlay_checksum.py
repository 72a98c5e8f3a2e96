"""UDP datagrams of IPv6 without a checksum: let in by VXLAN alone (RFC 8200 section 8.1, RFC 6935 section 5)."""

from __future__ import annotations

import socket
from contextlib import suppress
from ipaddress import IPv6Address

import pytest

from flannel_udp.dataplane.encapsulation import UDP, Encapsulation
from flannel_udp.dataplane.lanes import close_lanes
from flannel_udp.dataplane.outer_sockets import outer_sockets
from flannel_udp.dataplane.underlay import close_sockets
from flannel_udp.options import NO_OFFLOAD
from tests.support.agents import wait_for
from tests.support.engine_rig import VXLAN

HERE = IPv6Address("::1")
UDP_NO_CHECK6_TX = 101  # linux/udp.h


def received_until(last: bytes, sockets: list[socket.socket]) -> list[bytes]:
    """Return what came before `last`: a busy kernel leaves what was sent on the loopback interface to a thread."""
    found: list[bytes] = []

    def has_come() -> bool:
        for udp in sockets:
            with suppress(BlockingIOError):
                while True:
                    found.append(udp.recv(100))
        return last in found

    wait_for("the last one", has_come)
    return found[: found.index(last)]


@pytest.mark.parametrize(("encapsulation", "is_let_in"), [(UDP, False), (VXLAN, True)], ids=["udp", "vxlan"])
@pytest.mark.parametrize("n_source_ports", [0, 4])
def test_a_datagram_without_a_checksum(encapsulation: Encapsulation, is_let_in: bool, n_source_ports: int) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        sender.bind((str(HERE), 0))
        port = sender.getsockname()[1] ^ 1
        outer = outer_sockets(encapsulation, port, n_source_ports)
        sockets = outer.open(HERE, 1)
        opened = outer.open_lanes(sockets, NO_OFFLOAD)
        try:
            sender.sendto(b"with", (str(HERE), port))
            sender.setsockopt(socket.IPPROTO_UDP, UDP_NO_CHECK6_TX, 1)
            sender.sendto(b"without", (str(HERE), port))
            sender.setsockopt(socket.IPPROTO_UDP, UDP_NO_CHECK6_TX, 0)
            sender.sendto(b"last", (str(HERE), port))
            assert received_until(b"last", sockets) == [b"with", *([b"without"] if is_let_in else [])]
        finally:
            close_lanes(opened)
            close_sockets(sockets)
