"""A persistent flannel0 is taken over with whatever somebody else has set on it."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import subprocess
from collections.abc import Iterator

import pytest
import pytun

from flannel_udp.dataplane import tun_requests
from flannel_udp.dataplane import tunnel as tun
from flannel_udp.dataplane.reference import fault_of
from flannel_udp.lab.netns import call_inside
from tests.support.labs import NEEDS_NETNS, empty_namespace
from tests.support.tun_programs import load_constant

pytestmark = NEEDS_NETNS

TUNGETVNETHDRSZ, TUNGETVNETLE = (
    tun_requests.request_number(tun_requests.Direction.FROM_KERNEL, number, os.uname().machine) for number in (215, 221)
)
N_QUEUES, N_FLOWS = 2, 64
FOREIGN_HEADER_BYTES = 12


@pytest.fixture
def namespace() -> Iterator[str]:
    with empty_namespace() as name:
        yield name


def asked(fd: int, request: int) -> int:
    (value,) = struct.unpack("=i", fcntl.ioctl(fd, request, bytes(4)))
    return int(value)


def leave_a_device() -> None:
    """Make a persistent flannel0 that drops all, would put all on its second queue, and has foreign headers."""
    flags = pytun.IFF_TUN | pytun.IFF_NO_PI | tun.IFF_VNET_HDR | tun.IFF_MULTI_QUEUE
    device = pytun.TunTapDevice("flannel0", flags=flags)
    for request, number in ((tun_requests.TUNSETVNETHDRSZ, FOREIGN_HEADER_BYTES), (tun_requests.TUNSETVNETLE, 1)):
        fcntl.ioctl(device.fileno(), request, struct.pack("=i", number))
    for request, returned in ((tun_requests.TUNSETSTEERINGEBPF, 1), (tun_requests.TUNSETFILTEREBPF, 0)):
        program = load_constant(returned)
        fcntl.ioctl(device.fileno(), request, struct.pack("=i", program))
        os.close(program)
    device.persist(True)
    device.close()


def test_a_device_that_somebody_else_set_up_is_as_a_new_one(namespace: str) -> None:
    def check() -> None:
        leave_a_device()
        tunnel = tun.open_tunnel(N_QUEUES)
        try:
            assert (tunnel.name, tunnel.persistent) == ("flannel0", True)
            fds = tunnel.filenos()
            assert (asked(fds[0], TUNGETVNETHDRSZ), asked(fds[0], TUNGETVNETLE)) == (tun.VNET_HEADER_BYTES, 0)
            for command in ("link set flannel0 up", "addr add 10.1.1.0/16 dev flannel0"):
                subprocess.run(["ip", *command.split()], check=True)
            for number in range(N_FLOWS):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
                    out.sendto(b"x", ("10.1.2.7", 1_000 + number))
            got: dict[int, list[bytes]] = {fd: [] for fd in fds}
            while ready := select.select(fds, [], [], 0)[0]:
                for fd in ready:
                    got[fd].append(os.read(fd, 2048)[tun.VNET_HEADER_BYTES :])
            for packets in got.values():
                datagrams = [packet for packet in packets if packet[0] >> 4 == 4]
                assert datagrams  # on each queue
                assert not any(map(fault_of, datagrams))
        finally:
            tunnel.close()

    call_inside(namespace, check)
