"""Lanes: sockets of one address and port, each with a send buffer of its own, through which packets leave.

The kernel charges a packet to its socket until the network card has it, or somebody drops it. With one socket for all,
what waits for a slow peer, or for one whose hardware address nobody tells, fills the buffer for all peers.

All sockets of a lane's port are in one group (SO_REUSEPORT). A program of ours lets the kernel choose among the first
ones only, those of the workers: no lane ever receives.
"""

from __future__ import annotations

import ctypes
import logging
import socket
import struct
from collections.abc import Sequence

from flannel_udp.dataplane.offload import SOL_UDP, UDP_GRO
from flannel_udp.dataplane.underlay import BUFFER_BYTES, IP_MTU_DISCOVER, IP_PMTUDISC_DO, set_send_buffer

logger = logging.getLogger(__name__)

LANES = 64
"""Of all workers together."""
LANE_BYTES = 192 << 10
"""A lane's send buffer, without the kernel's own bookkeeping: 2 ms at 1 Gbit/s."""

_SO_ATTACH_REUSEPORT_CBPF = 51  # asm-generic/socket.h
# linux/bpf_common.h, linux/filter.h
_LOAD_WORD, _MODULO, _RETURN_A = 0x20, 0x94, 0x16
_NETWORK_HEADER, _SOURCE_AT = -0x100000 & 0xFFFFFFFF, 12


def open_lanes(sockets: Sequence[socket.socket], *, udp_gro: bool) -> list[list[socket.socket]]:
    """Return the further lanes of each worker's socket; none of any where the kernel does not allow them.

    `udp_gro`: whether the sockets have UDP_GRO. Lanes must have what they have, although they never receive: the kernel
    asks one of the group before it joins datagrams, and does not ask our program which (linux, udp4_gro_lookup_skb).
    """
    per_worker = 1 << (LANES // len(sockets)).bit_length() - 1
    opened: list[list[socket.socket]] = [[] for _ in sockets]
    try:
        for udp in sockets:
            set_send_buffer(udp, LANE_BYTES)
        _receive_with_first(sockets[0], len(sockets))
        for lanes, udp in zip(opened, sockets, strict=True):
            for _ in range(per_worker - 1):
                lanes.append(_open_lane(udp, udp_gro=udp_gro))
    except OSError as failed:
        logger.warning("all peers share one send buffer, a slow one may fill it: %s", failed.strerror)
        close_lanes(opened)
        for udp in sockets:
            set_send_buffer(udp, BUFFER_BYTES)
        return [[] for _ in sockets]
    return opened


def close_lanes(opened: Sequence[Sequence[socket.socket]]) -> None:
    """Close them all."""
    for lanes in opened:
        for lane in lanes:
            lane.close()


def _open_lane(udp: socket.socket, *, udp_gro: bool) -> socket.socket:
    lane = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        set_send_buffer(lane, LANE_BYTES)
        lane.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        if udp_gro:
            lane.setsockopt(SOL_UDP, UDP_GRO, 1)
        lane.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        lane.bind(udp.getsockname())
    except OSError:
        lane.close()
        raise
    return lane


def _receive_with_first(udp: socket.socket, n: int) -> None:
    """Let the group's first `n` sockets receive: each what comes from addresses that leave its number, modulo `n`."""
    code = b"".join(
        struct.pack("=HBBI", operation, 0, 0, operand)
        for operation, operand in ((_LOAD_WORD, _NETWORK_HEADER + _SOURCE_AT), (_MODULO, n), (_RETURN_A, 0))
    )
    instructions = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(instructions))  # struct sock_fprog
    udp.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, program)
