"""Programs of classic BPF that a socket runs for each packet (linux/filter.h, linux/bpf_common.h)."""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Sequence
from typing import NamedTuple

SO_ATTACH_FILTER, SO_ATTACH_REUSEPORT_CBPF = 26, 51  # asm-generic/socket.h

LOAD_WORD, MODULO, JUMP_EQUAL, RETURN_A, RETURN_CONSTANT = 0x20, 0x94, 0x15, 0x16, 0x06
_NET_OFF = -0x100000 & 0xFFFFFFFF  # SKF_NET_OFF: the outer IP header
SOURCE_ADDRESS = _NET_OFF + 12
"""Operand of `LOAD_WORD`: where the source address is in an outer IPv4 header."""
SOURCE_ADDRESS6_END = _NET_OFF + 20
"""Likewise the last 32 bits of it in an IPv6 header: those that differ on one link."""
WHOLE = 0xFFFF
"""What a filter returns to let a packet in, in bytes; 0 keeps it out."""


class Step(NamedTuple):
    """A struct sock_filter: an operation with its operand, and how many steps a jump skips."""

    operation: int
    operand: int = 0
    skip_if_so: int = 0
    skip_if_not: int = 0


def attach_program(sock: socket.socket, option: int, program: Sequence[Step]) -> None:
    """Have the socket run the program, as its filter or to choose among its group. Raises `OSError`."""
    code = b"".join(
        struct.pack("=HBBI", step.operation, step.skip_if_so, step.skip_if_not, step.operand) for step in program
    )
    instructions = ctypes.create_string_buffer(code, len(code))
    head = struct.pack("@HP", len(program), ctypes.addressof(instructions))  # struct sock_fprog
    sock.setsockopt(socket.SOL_SOCKET, option, head)


def let_nothing_in(sock: socket.socket) -> None:
    """Have the socket receive nothing. Raises `OSError`."""
    attach_program(sock, SO_ATTACH_FILTER, [Step(RETURN_CONSTANT, 0)])
