"""Offload switches of an interface, as `ethtool -K` sets them (the tool itself is seldom installed).

<linux/ethtool.h>: a command is a struct that begins with its number, all fields u32 in native order, handed over by
pointer in a struct ifreq. Features are bits; the kernel names them in a string set, and the bits move between kernels.
"""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
from collections.abc import Mapping

from flannel_udp.errors import FlannelError
from flannel_udp.lab.netns import call_inside

_SIOCETHTOOL = 0x8946
_GET_STRINGS, _GET_FEATURES, _SET_FEATURES, _GET_SET_INFO = 0x1B, 0x3A, 0x3B, 0x37
_FEATURE_NAMES = 4  # enum ethtool_stringset: ETH_SS_FEATURES
_NAME_LEN = 32  # ETH_GSTRING_LEN
_BLOCK_BITS = 32

TSO = ("tx-tcp-segmentation", "tx-tcp6-segmentation", "tx-tcp-ecn-segmentation", "tx-tcp-mangleid-segmentation")
GSO = ("tx-generic-segmentation",)
USO = ("tx-udp-segmentation",)
GRO = ("rx-gro",)
CUTTING = TSO + GSO + USO
"""An interface that has none of them cuts super-packets before they leave."""


def set_features(namespace: str, interface: str, wanted: Mapping[str, bool]) -> None:
    """Switch features, by the kernel's names, on or off. Raises `FlannelError` if one is unknown or stays as it was."""
    with call_inside(namespace, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        bits = {name: bit for bit, name in enumerate(_feature_names(sock, interface))}
        unknown = [name for name in wanted if name not in bits]
        if unknown:
            raise FlannelError(f"this kernel knows no interface feature {unknown[0]!r}")
        blocks = -(-len(bits) // _BLOCK_BITS)
        valid, requested = [0] * blocks, [0] * blocks
        for name, on in wanted.items():
            block, bit = divmod(bits[name], _BLOCK_BITS)
            valid[block] |= 1 << bit
            requested[block] |= on << bit
        pairs = [word for block in zip(valid, requested, strict=True) for word in block]
        _ioctl(sock, interface, struct.pack(f"=II{len(pairs)}I", _SET_FEATURES, blocks, *pairs))
        active = _active_blocks(sock, interface, blocks)
        for name, on in wanted.items():
            block, bit = divmod(bits[name], _BLOCK_BITS)
            if bool(active[block] >> bit & 1) != on:
                state = "on" if on else "off"
                raise FlannelError(f"feature {name} of {interface} in {namespace} cannot be switched {state}")


def _feature_names(sock: socket.socket, interface: str) -> list[str]:
    info = _ioctl(sock, interface, struct.pack("=IIQI", _GET_SET_INFO, 0, 1 << _FEATURE_NAMES, 0))
    n = struct.unpack("=IIQI", info)[3]
    answer = _ioctl(sock, interface, struct.pack("=III", _GET_STRINGS, _FEATURE_NAMES, n) + bytes(n * _NAME_LEN))
    names = answer[12:]
    return [names[i : i + _NAME_LEN].split(b"\0", 1)[0].decode() for i in range(0, len(names), _NAME_LEN)]


def _active_blocks(sock: socket.socket, interface: str, blocks: int) -> list[int]:
    """Return the active bits. Each block holds four words: available, requested, active, never_changed."""
    answer = _ioctl(sock, interface, struct.pack("=II", _GET_FEATURES, blocks) + bytes(blocks * 16))
    return [words[2] for words in struct.iter_unpack("=IIII", answer[8:])]


def _ioctl(sock: socket.socket, interface: str, command: bytes) -> bytes:
    """Hand `command` to the driver and return the struct as the kernel filled it in."""
    buffer = ctypes.create_string_buffer(command, len(command))
    request = struct.pack("16sP16x", interface.encode(), ctypes.addressof(buffer))
    try:
        fcntl.ioctl(sock, _SIOCETHTOOL, request)
    except OSError as error:
        raise FlannelError(f"ethtool on {interface} failed: {error.strerror}") from None
    return buffer.raw
