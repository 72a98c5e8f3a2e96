"""The fallback ladder: which offloads are wanted, and which of them this kernel grants.

Each rung is asked for on its own and simply left out where the kernel says no; traffic is the same on the wire with any
set of them, only slower. What the kernel refuses at run time, all the same, the engine leaves out for a while: joined
writes, and `udp-segment` on a route's device without checksum offload.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import socket
import struct
from collections.abc import Collection
from dataclasses import replace

from flannel_udp.dataplane.join_probe import TCP, UDP, takes_super_packets
from flannel_udp.dataplane.tun_requests import TUNSETOFFLOAD
from flannel_udp.options import Offload

logger = logging.getLogger(__name__)

# linux/if_tun.h
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN, TUN_F_USO4, TUN_F_USO6 = 0x01, 0x02, 0x04, 0x08, 0x20, 0x40
IP_RECVTOS, IPV6_RECVTCLASS = 13, 66  # linux/in.h, linux/in6.h; socket.IP_RECVTOS is there on newer Pythons only
# linux/sockios.h, linux/ethtool.h
SIOCETHTOOL, ETHTOOL_GTSO = 0x8946, 0x1E
_ETHTOOL_VALUE = struct.Struct("=II")  # command, answer
# linux/udp.h
SOL_UDP, UDP_SEGMENT, UDP_GRO = 17, 103, 104


def enable_on_tunnel(fd: int, wanted: Offload, versions: Collection[int] = (4,)) -> Offload:
    """Switch on what is wanted and possible on the TUN for the IP versions that it carries; return what is on."""
    granted = wanted
    tso = TUN_F_TSO_ECN | (TUN_F_TSO4 if 4 in versions else 0) | (TUN_F_TSO6 if 6 in versions else 0)
    # The kernel takes USO4 and USO6 together only, and knows them since 6.2; both ways, reading and writing.
    if (wanted.uso or wanted.join_udp) and not _set_tunnel(fd, TUN_F_CSUM | TUN_F_USO4 | TUN_F_USO6):
        granted = replace(granted, uso=False, join_udp=False)
    if wanted.tso and not _set_tunnel(fd, TUN_F_CSUM | tso):
        granted = replace(granted, tso=False)
    bits = (tso if granted.tso else 0) | (TUN_F_USO4 | TUN_F_USO6 if granted.uso else 0)
    if not _set_tunnel(fd, bits | TUN_F_CSUM if bits else 0):
        granted = replace(granted, tso=False, uso=False)
        _set_tunnel(fd, 0)
    return replace(
        granted,
        join_tcp=granted.join_tcp and _may_join(fd, "join-tcp", TCP),
        join_udp=granted.join_udp and _may_join(fd, "join-udp", UDP),
    )


def hands_over_super_packets(name: str) -> bool:
    """Tell whether the device hands over TCP uncut: `ethtool -K flannel0 tso off` takes back what it was told.

    Also True where the kernel does not say: the device is gone, or has another name now, or we may open no socket.
    """
    command = ctypes.create_string_buffer(_ETHTOOL_VALUE.pack(ETHTOOL_GTSO, 0), _ETHTOOL_VALUE.size)
    request = struct.pack("16sP16x", name.encode(), ctypes.addressof(command))
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
            fcntl.ioctl(any_socket, SIOCETHTOOL, request)
    except OSError:
        return True
    return bool(_ETHTOOL_VALUE.unpack(command.raw)[1])


def enable_on_socket(udp: socket.socket, wanted: Offload) -> Offload:
    """Switch on what is wanted and possible on the UDP socket; return what is on.

    Each datagram's TOS byte, or traffic class, is always asked for: congestion marks must cross the tunnel (RFC 6040).
    """
    granted = wanted
    if udp.family == socket.AF_INET:
        udp.setsockopt(socket.IPPROTO_IP, IP_RECVTOS, 1)
    else:
        udp.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVTCLASS, 1)
    if wanted.udp_gro and not _set_socket(udp, UDP_GRO, 1):
        granted = replace(granted, udp_gro=False)
    # 0 leaves the socket as it is: the size comes with each call. Kernels before 4.18 do not know the option.
    if wanted.udp_segment and not _set_socket(udp, UDP_SEGMENT, 0):
        granted = replace(granted, udp_segment=False)
    return granted


def _may_join(fd: int, name: str, protocol: int) -> bool:
    if takes_super_packets(fd, protocol):
        return True
    logger.warning("%s is not used: this kernel refuses joined packets from a tunnel device (EINVAL)", name)
    return False


def _set_tunnel(fd: int, features: int) -> bool:
    try:
        fcntl.ioctl(fd, TUNSETOFFLOAD, features)
    except OSError as refused:
        if refused.errno != errno.EINVAL:
            raise
        return False
    return True


def _set_socket(udp: socket.socket, option: int, value: int) -> bool:
    try:
        udp.setsockopt(SOL_UDP, option, value)
    except OSError:
        return False
    return True
