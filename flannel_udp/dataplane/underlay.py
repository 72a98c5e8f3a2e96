"""Open the sockets to the underlay: the UDP socket that carries the tunnel, and the raw one for ICMP answers."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address
from typing import NamedTuple

from flannel_udp.errors import FlannelError

BUFFER_BYTES = 4 << 20  # to receive into: the default of 208 KiB holds some 100 datagrams: a burst of one TCP window
SO_SNDBUFFORCE = 32  # asm-generic/socket.h; beyond net.core.wmem_max, needs CAP_NET_ADMIN
SO_RCVBUFFORCE = 33
IP_MTU_DISCOVER, IP_PMTUDISC_DO = 10, 2  # linux/in.h; the socket module names them on newer Pythons only


class SocketBuffers(NamedTuple):
    """The buffers of a UDP socket of the tunnel, in bytes."""

    receive_bytes: int
    send_bytes: int


def open_sockets(address: IPv4Address, port: int, n: int) -> list[socket.socket]:
    """Open `n` UDP sockets of the tunnel, one a worker. Raises FlannelError; none stays open then."""
    sockets: list[socket.socket] = []
    try:
        for number in range(n):
            sockets.append(open_underlay(address, port, first=number == 0))
    except FlannelError:
        close_sockets(sockets)
        raise
    return sockets


def close_sockets(sockets: Sequence[socket.socket]) -> None:
    """Close them all."""
    for udp in sockets:
        udp.close()


def open_underlay(address: IPv4Address, port: int, *, first: bool) -> socket.socket:
    """Open a UDP socket of the tunnel, bound to the external interface's address. Raises FlannelError.

    Several sockets share the port (SO_REUSEPORT); that nobody else has it is found out by the `first`.
    """
    if first:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as alone:
            _bind(alone, address, port)
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    _set_buffer(udp, SO_RCVBUFFORCE, socket.SO_RCVBUF, BUFFER_BYTES)
    # Never let the kernel fragment behind our back: the engine learns the path's MTU from EMSGSIZE.
    udp.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
    udp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        _bind(udp, address, port)
    except FlannelError:
        udp.close()
        raise
    return udp


def _bind(udp: socket.socket, address: IPv4Address, port: int) -> None:
    try:
        udp.bind((str(address), port))
    except OSError as failed:
        raise FlannelError(_explain(address, port, failed)) from failed


def check_underlay(sockets: Sequence[socket.socket], address: IPv4Address, port: int) -> None:
    """Raise FlannelError unless these sockets, which another process has opened, are bound like ours."""
    for udp in sockets:
        if udp.type != socket.SOCK_DGRAM or udp.getsockname() != (str(address), port):
            raise FlannelError(
                f"a UDP socket that was handed over is bound to {udp.getsockname()}, not {address}:{port}"
            )


def open_icmp() -> socket.socket:
    """Open the raw socket for ICMP answers: send-only (IPPROTO_RAW), headers included. Raises FlannelError."""
    try:
        return socket.socket(
            socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW
        )
    except PermissionError as failed:
        raise FlannelError("cannot open a raw socket for ICMP answers: needs CAP_NET_RAW; run as root") from failed
    except OSError as failed:
        raise FlannelError(f"cannot open a raw socket for ICMP answers: {failed.strerror}") from failed


def granted_buffers(udp: socket.socket) -> SocketBuffers:
    """Return the buffers that the kernel granted; it reports double, its own bookkeeping included (socket(7))."""
    receive, send = (udp.getsockopt(socket.SOL_SOCKET, name) // 2 for name in (socket.SO_RCVBUF, socket.SO_SNDBUF))
    return SocketBuffers(receive, send)


def set_send_buffer(udp: socket.socket, n_bytes: int) -> None:
    """Ask for a send buffer of that size; what the kernel grants is enough to run with."""
    _set_buffer(udp, SO_SNDBUFFORCE, socket.SO_SNDBUF, n_bytes)


def _set_buffer(udp: socket.socket, force: int, plain: int, n_bytes: int) -> None:
    try:
        udp.setsockopt(socket.SOL_SOCKET, force, n_bytes)
    except PermissionError:
        udp.setsockopt(socket.SOL_SOCKET, plain, n_bytes)


def _explain(address: IPv4Address, port: int, failed: OSError) -> str:
    if failed.errno == errno.EADDRINUSE:
        return (
            f"UDP port {port} on {address} is in use: does another flanneld or flannel-udp run here? "
            "Stop it, or choose another Backend.Port for the whole network"
        )
    if failed.errno == errno.EADDRNOTAVAIL:
        return f"cannot bind to {address}: this host does not have that address"
    return f"cannot bind UDP port {port} on {address}: {failed.strerror}"
