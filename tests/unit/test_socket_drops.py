"""What the kernel has dropped in front of our sockets, and kernels that do not tell."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from flannel_udp.dataplane.underlay import SO_MEMINFO, count_socket_drops


class _OldSocket(socket.socket):
    """A UDP socket that refuses SO_MEMINFO with this errno, as one of Linux before 4.12 does."""

    refusal = errno.ENOPROTOOPT

    def getsockopt(self, level: int, option: int, *_buffer: int) -> bytes:  # type: ignore[override]
        assert (level, option) == (socket.SOL_SOCKET, SO_MEMINFO)
        raise OSError(self.refusal, os.strerror(self.refusal))


class _BrokenSocket(_OldSocket):
    refusal = errno.EBADF


def test_a_kernel_that_does_not_count_what_a_socket_drops_has_dropped_nothing_as_far_as_is_known() -> None:
    with _OldSocket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        assert count_socket_drops([udp]) == 0


def test_what_else_is_wrong_with_a_socket_is_an_error() -> None:
    with _BrokenSocket(socket.AF_INET, socket.SOCK_DGRAM) as udp, pytest.raises(OSError, match="Bad file descriptor"):
        count_socket_drops([udp])
