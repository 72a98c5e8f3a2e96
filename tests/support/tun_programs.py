"""BPF programs for TUN devices, as somebody else may have left them on one."""

from __future__ import annotations

import ctypes
import platform
import struct

# bpf(2); linux/bpf.h
_BPF_NUMBER = {"x86_64": 321, "aarch64": 280}
_PROG_LOAD, _SOCKET_FILTER = 5, 1
_MOV_R0, _EXIT = 0xB7, 0x95


def load_constant(value: int) -> int:
    """Load a socket filter program that returns `value`, and return its descriptor, the caller's. Raises OSError."""
    code = ctypes.create_string_buffer(struct.pack("=BBhiBBhi", _MOV_R0, 0, 0, value, _EXIT, 0, 0, 0))
    licence = ctypes.create_string_buffer(b"GPL")
    attributes = ctypes.create_string_buffer(
        struct.pack("=IIQQ", _SOCKET_FILTER, 2, ctypes.addressof(code), ctypes.addressof(licence)), 128
    )
    libc = ctypes.CDLL(None, use_errno=True)
    fd: int = libc.syscall(_BPF_NUMBER[platform.machine()], _PROG_LOAD, attributes, len(attributes))
    if fd < 0:
        raise OSError(ctypes.get_errno(), "bpf")
    return fd
