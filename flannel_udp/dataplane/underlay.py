"""Open the sockets to the underlay: the UDP socket that carries the tunnel, and the raw one for ICMP answers."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from typing import NamedTuple

from flannel_udp.errors import FlannelError, PortInUse
from flannel_udp.model import Address

BUFFER_BYTES = 4 << 20  # to receive into: the default of 208 KiB holds some 100 datagrams: a burst of one TCP window
# For a worker's ICMP answers: more than may wait. To an address that nobody has one waits some 3 s for ARP or ND,
# charged to the socket; the limiter lets 1,000 a second pass (`_fastpath/icmp.pyx`). The kernel doubles it for its
# bookkeeping.
ANSWERS_BYTES = 3 * 1_000 * 1_280
SO_SNDBUFFORCE = 32  # asm-generic/socket.h; beyond net.core.wmem_max, needs CAP_NET_ADMIN
SO_RCVBUFFORCE = 33
SO_MEMINFO = 55  # Linux 4.12
_MEMINFO = struct.Struct("=9I")  # linux/sock_diag.h: the last one is SK_MEMINFO_DROPS
IP_MTU_DISCOVER, IP_PMTUDISC_DO = 10, 2  # linux/in.h; the socket module names them on newer Pythons only
IPV6_MTU_DISCOVER = 23  # linux/in6.h; IPV6_PMTUDISC_DO is 2, too
UDP_NO_CHECK6_RX = 102  # linux/udp.h


class SocketBuffers(NamedTuple):
    """The buffers of a UDP socket of the tunnel, in bytes."""

    receive_bytes: int
    send_bytes: int


def open_sockets(address: Address, port: int, n: int, *, without_checksum: bool = False) -> list[socket.socket]:
    """Open `n` UDP sockets of the tunnel, one a worker. Raises FlannelError; none stays open then.

    `without_checksum`: IPv6 datagrams without a checksum are let in, which only some protocols may (RFC 6935).
    """
    sockets: list[socket.socket] = []
    try:
        for number in range(n):
            sockets.append(open_underlay(address, port, first=number == 0))
            if without_checksum and address.version == 6:
                sockets[-1].setsockopt(socket.IPPROTO_UDP, UDP_NO_CHECK6_RX, 1)
    except FlannelError:
        close_sockets(sockets)
        raise
    return sockets


def close_sockets(sockets: Sequence[socket.socket]) -> None:
    """Close them all."""
    for udp in sockets:
        udp.close()


def open_udp(version: int) -> socket.socket:
    """Open a UDP socket of one IP version that refuses what is too big for the path, as all of the tunnel's do."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    udp = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    # Never let the kernel fragment behind our back: the engine learns the path's MTU from EMSGSIZE.
    if version == 4:
        udp.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
    else:
        udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        udp.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IP_PMTUDISC_DO)
    return udp


def open_underlay(address: Address, port: int, *, first: bool) -> socket.socket:
    """Open a UDP socket of the tunnel, bound to the external interface's address. Raises FlannelError.

    Several sockets share the port (SO_REUSEPORT); that nobody else has it is found out by the `first`.
    """
    if first:
        with _open_udp(address) as alone:
            _bind(alone, address, port)
    udp = _open_udp(address)
    set_receive_buffer(udp, BUFFER_BYTES)
    udp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        _bind(udp, address, port)
    except FlannelError:
        udp.close()
        raise
    return udp


def _open_udp(address: Address) -> socket.socket:
    try:
        return open_udp(address.version)
    except OSError as failed:  # a kernel without IPv6, or no descriptor is left
        raise FlannelError(f"cannot open a UDP socket for {address}: {failed.strerror}") from failed


def _bind(udp: socket.socket, address: Address, port: int) -> None:
    try:
        udp.bind((str(address), port))
    except OSError as failed:
        text = _explain(address, port, failed)
        in_use = failed.errno == errno.EADDRINUSE
        raise PortInUse(text, port, address.version) if in_use else FlannelError(text) from failed


def bound_to(udp: socket.socket) -> tuple[Address, int]:
    """Return the address and the port that a UDP socket is bound to."""
    name = udp.getsockname()
    return ip_address(name[0]), name[1]


def check_underlay(sockets: Sequence[socket.socket], address: Address, port: int) -> None:
    """Raise FlannelError unless these sockets, which another process has opened, are bound like ours."""
    for udp in sockets:
        if udp.type != socket.SOCK_DGRAM or bound_to(udp) != (address, port):
            found = udp.getsockname()
            raise FlannelError(f"a UDP socket that was handed over is bound to {found}, not {address} port {port}")


def open_icmp(version: int, n: int) -> socket.socket:
    """Open the raw socket for `n` workers' ICMP answers: send-only (IPPROTO_RAW), headers included.

    Raises FlannelError.
    """
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    try:
        icmp = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW)
    except PermissionError as failed:
        raise FlannelError("cannot open a raw socket for ICMP answers: needs CAP_NET_RAW; run as root") from failed
    except OSError as failed:
        raise FlannelError(f"cannot open a raw socket for ICMP answers: {failed.strerror}") from failed
    set_send_buffer(icmp, n * ANSWERS_BYTES)
    return icmp


def adopt_icmp(fd: int, n: int) -> socket.socket:
    """Return the raw socket for ICMP answers that another process, perhaps of an earlier version, has opened."""
    icmp = socket.socket(fileno=fd)
    set_send_buffer(icmp, n * ANSWERS_BYTES)
    return icmp


def granted_buffers(udp: socket.socket) -> SocketBuffers:
    """Return the buffers that the kernel granted; it reports double, its own bookkeeping included (socket(7))."""
    receive, send = (udp.getsockopt(socket.SOL_SOCKET, name) // 2 for name in (socket.SO_RCVBUF, socket.SO_SNDBUF))
    return SocketBuffers(receive, send)


def receive_buffer_here() -> int:
    """Return how many bytes the tunnel's socket would get to receive into, if this process opened it.

    Asked of a socket: net.core.rmem_max is shown in the first network namespace only, before Linux 6.11.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        set_receive_buffer(udp, BUFFER_BYTES)
        return granted_buffers(udp).receive_bytes


def count_socket_drops(sockets: Iterable[socket.socket]) -> int:
    """Return how many datagrams the kernel has dropped that were for these sockets; modulo 2^32 each.

    0 where it does not tell: before Linux 4.12.
    """
    try:
        return sum(_MEMINFO.unpack(udp.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, _MEMINFO.size))[-1] for udp in sockets)
    except OSError as unknown:
        if unknown.errno != errno.ENOPROTOOPT:
            raise
        return 0


def set_send_buffer(udp: socket.socket, n_bytes: int) -> None:
    """Ask for a send buffer of that size; what the kernel grants is enough to run with."""
    _set_buffer(udp, SO_SNDBUFFORCE, socket.SO_SNDBUF, n_bytes)


def set_receive_buffer(udp: socket.socket, n_bytes: int) -> None:
    """Ask for a receive buffer of that size; likewise."""
    _set_buffer(udp, SO_RCVBUFFORCE, socket.SO_RCVBUF, n_bytes)


def _set_buffer(udp: socket.socket, force: int, plain: int, n_bytes: int) -> None:
    try:
        udp.setsockopt(socket.SOL_SOCKET, force, n_bytes)
    except PermissionError:
        udp.setsockopt(socket.SOL_SOCKET, plain, n_bytes)


def _explain(address: Address, port: int, failed: OSError) -> str:
    if failed.errno == errno.EADDRINUSE:
        return (
            f"UDP port {port} on {address} is in use: does another flanneld or flannel-udp run here? "
            "Stop it, or choose another Backend.Port for the whole network"
        )
    if failed.errno == errno.EADDRNOTAVAIL:
        return f"cannot bind to {address}: this host does not have that address"
    return f"cannot bind UDP port {port} on {address}: {failed.strerror}"
