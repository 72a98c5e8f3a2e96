"""Ask the kernel whether it takes super-packets, before it gets one that matters.

Some kernels refuse each with EINVAL, for what the virtio-net header says of its checksum (6.6.44 is one, and what
vendors made of it). The header is looked at before the question whether the device is up: a device that was opened just
now answers EIO, and nobody ever sees the packet.
"""

from __future__ import annotations

import errno
import os
import struct

TCP, UDP = 6, 17
_VNET = struct.Struct("=BBHHHH")  # linux/virtio_net.h, struct virtio_net_hdr
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_NEEDS_CSUM, _GSO_TCPV4, _GSO_UDP_L4 = 1, 1, 5
_SEGMENT_BYTES = 100
# A device that is up already, persistent or in use, drops it: no packet may come from there (RFC 1122 section 3.2.1.3).
_SOURCE, _DESTINATION = b"\xff\xff\xff\xff", b"\x7f\0\0\1"


def takes_super_packets(fd: int, protocol: int) -> bool:
    """Tell whether the TUN `fd`, with virtio-net headers of 10 bytes, takes two joined segments of `protocol`."""
    try:
        os.write(fd, _super_packet(protocol))
    except OSError as refused:
        return refused.errno != errno.EINVAL
    return True


def _super_packet(protocol: int) -> bytes:
    if protocol == TCP:
        l4 = struct.pack("!HHIIBBHHH", 9, 9, 0, 0, 5 << 4, 0x10, 1, 0, 0)  # ACK
        kind, checksum_at = _GSO_TCPV4, 16
    else:
        l4 = struct.pack("!HHHH", 9, 9, 8 + 2 * _SEGMENT_BYTES, 0)
        kind, checksum_at = _GSO_UDP_L4, 6
    n_bytes = _IPV4.size + len(l4) + 2 * _SEGMENT_BYTES
    ip = _with_checksum(_IPV4.pack(0x45, 0, n_bytes, 0, 0x4000, 1, protocol, 0, _SOURCE, _DESTINATION))
    vnet = _VNET.pack(_NEEDS_CSUM, kind, _IPV4.size + len(l4), _SEGMENT_BYTES, _IPV4.size, checksum_at)
    return vnet + ip + l4 + bytes(2 * _SEGMENT_BYTES)


def _with_checksum(header: bytes) -> bytes:
    """Fill in an IPv4 header's checksum (RFC 1071)."""
    total = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return header[:10] + struct.pack("!H", ~total & 0xFFFF) + header[12:]
