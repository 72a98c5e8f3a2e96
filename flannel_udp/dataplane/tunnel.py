"""Open the TUN device, flannel0 or the next free flannelN."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence

import pytun

from flannel_udp.errors import FlannelError

IFF_VNET_HDR, IFF_MULTI_QUEUE = 0x4000, 0x0100  # linux/if_tun.h; pytun does not name the first
VNET_HEADER_BYTES = 10  # struct virtio_net_hdr, what a TUN with IFF_VNET_HDR uses until told otherwise
DEVICES_MAX = 256


class Tunnel:
    """An open TUN device without a packet-information header, each packet behind a virtio-net header.

    It has one queue a worker; the kernel keeps a flow on one queue. It removes the device, with its address and route,
    when the last descriptor is closed.
    """

    def __init__(self, queues: Sequence[pytun.TunTapDevice]) -> None:
        self._queues = tuple(queues)
        self.name: str = queues[0].name
        self.index = socket.if_nametoindex(self.name)
        """The device's interface index, which no other device gets while this machine is up (in one namespace)."""
        for queue in queues:
            os.set_inheritable(queue.fileno(), False)
            os.set_blocking(queue.fileno(), False)

    def filenos(self) -> list[int]:
        """Return the queues' descriptors, non-blocking."""
        return [queue.fileno() for queue in self._queues]

    def close(self) -> None:
        """Close the descriptors and so remove the device."""
        for queue in self._queues:
            queue.close()


def open_tunnel(n_queues: int) -> Tunnel:
    """Open flannel0 or, where that is taken, the next free name (flanneld's way).

    A persistent flannel0 that a killed run left behind is free and so is taken over.
    Raises FlannelError.
    """
    for number in range(DEVICES_MAX):
        queues: list[pytun.TunTapDevice] = []
        try:
            for _ in range(n_queues):
                queues.append(_open_queue(f"flannel{number}", n_queues > 1))
            return Tunnel(queues)
        except (pytun.Error, OSError) as failed:
            for queue in queues:
                queue.close()
            code = failed.args[0] if failed.args else None
            # EBUSY: another process has it open. EINVAL: a device of this name is no TUN, or not with as many queues.
            if code not in (errno.EBUSY, errno.EINVAL):
                raise FlannelError(_explain(code, failed)) from failed
    raise FlannelError(f"flannel0 to flannel{DEVICES_MAX - 1} are all taken: remove some with 'ip link del NAME'")


def _open_queue(name: str, several: bool) -> pytun.TunTapDevice:
    flags = pytun.IFF_TUN | pytun.IFF_NO_PI | IFF_VNET_HDR
    return pytun.TunTapDevice(name, flags=flags | IFF_MULTI_QUEUE if several else flags)


def _explain(code: object, failed: Exception) -> str:
    if code in (errno.EPERM, errno.EACCES):
        return "cannot create the tunnel device: needs CAP_NET_ADMIN; run as root"
    if code in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return "cannot create the tunnel device: /dev/net/tun is missing; run 'modprobe tun'"
    return f"cannot create the tunnel device: {failed}"
