"""Hears what the kernel tells a netlink multicast group, without ever waiting."""

from __future__ import annotations

import asyncio
import errno
import select
import socket
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress

from flannel_udp.errors import FlannelError

_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP = 270, 1  # linux/socket.h, linux/netlink.h

_SO_RCVBUFFORCE = 33  # asm-generic/socket.h: beyond net.core.rmem_max, needs CAP_NET_ADMIN
_BUFFER_BYTES = 4 << 20
"""The default of 208 KiB holds some 200 messages: fewer than routes that a daemon, or we, change in one go."""
_DATAGRAM_BYTES = 65_536  # netlink(7): 8 KiB suffice for one message; the kernel may put many into a datagram
_READS_MAX = 16  # datagrams a wake-up: other work waits meanwhile


def open_groups(protocol: int, groups: Iterable[int]) -> socket.socket:
    """Open a socket to which the kernel tells what it tells these groups of the protocol. Raises `FlannelError`."""
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    with ExitStack() as undo:
        try:
            netlink = undo.enter_context(socket.socket(socket.AF_NETLINK, kind, protocol))
            netlink.bind((0, 0))  # the kernel chooses the port id; without one nothing is delivered
            with suppress(PermissionError):
                netlink.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
            for group in groups:
                netlink.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
        except OSError as failed:
            raise _unheard(failed) from failed
        undo.pop_all()
    return netlink


def _unheard(failed: OSError) -> FlannelError:
    return FlannelError(f"cannot listen to the kernel's news: {failed.strerror}")


class Listener:
    """Calls `changed()` on the running loop for every wake-up with a datagram that `concerns` us, until closed.

    It is also called when messages were lost, after `lost()`. The socket is closed with it, also where making it
    raises `FlannelError`.
    """

    def __init__(
        self,
        netlink: socket.socket,
        concerns: Callable[[bytes], bool],
        changed: Callable[[], None],
        lost: Callable[[], None] | None = None,
    ) -> None:
        self._netlink = netlink
        self._concerns = concerns
        self._changed = changed
        self._lost = lost
        # A descriptor that reports an error (ENOBUFS) once is never reported again by uvloop: it watches an epoll
        # descriptor of ours, and the socket is in that.
        try:
            self._epoll = select.epoll()
        except OSError as failed:
            netlink.close()
            raise _unheard(failed) from failed
        self._epoll.register(netlink.fileno(), select.EPOLLIN)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._epoll.fileno(), self._read)

    def close(self) -> None:
        """Stop listening and close the socket."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._netlink.close()

    def _read(self) -> None:
        changed = False
        for _ in range(_READS_MAX):
            try:
                changed |= self._concerns(self._netlink.recv(_DATAGRAM_BYTES))
            except BlockingIOError:
                break
            except OSError as failed:
                if failed.errno != errno.ENOBUFS:
                    raise
                changed = True  # messages were lost: anything may have changed (netlink(7))
                if self._lost is not None:
                    self._lost()
        if changed:
            self._changed()
