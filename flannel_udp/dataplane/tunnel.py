"""Open the TUN device, flannel0 or the next free flannelN."""

from __future__ import annotations

import errno
import os
from typing import Self

import pytun

from flannel_udp.errors import FlannelError

IFF_VNET_HDR = 0x4000  # linux/if_tun.h; pytun does not name it
VNET_HEADER_BYTES = 10  # struct virtio_net_hdr, what a TUN with IFF_VNET_HDR uses until told otherwise
DEVICES_MAX = 256


class Tunnel:
    """An open TUN device without a packet-information header, each packet behind a virtio-net header.

    The kernel removes the device, with its address and route, when the descriptor is closed.
    """

    def __init__(self, device: pytun.TunTapDevice) -> None:
        self._device = device
        self.name: str = device.name
        os.set_inheritable(device.fileno(), False)
        os.set_blocking(device.fileno(), False)

    def fileno(self) -> int:
        """Return the device's descriptor, non-blocking."""
        fd: int = self._device.fileno()
        return fd

    def close(self) -> None:
        """Close the descriptor and so remove the device."""
        self._device.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_tunnel() -> Tunnel:
    """Open flannel0 or, where that is taken, the next free name (flanneld's way).

    A persistent flannel0 that a killed run left behind is free and so is taken over.
    Raises FlannelError.
    """
    for number in range(DEVICES_MAX):
        try:
            return Tunnel(pytun.TunTapDevice(f"flannel{number}", flags=pytun.IFF_TUN | pytun.IFF_NO_PI | IFF_VNET_HDR))
        except (pytun.Error, OSError) as failed:
            code = failed.args[0] if failed.args else None
            # EBUSY: another process has it open. EINVAL: a device of this name is no plain TUN.
            if code not in (errno.EBUSY, errno.EINVAL):
                raise FlannelError(_explain(code, failed)) from failed
    raise FlannelError(f"flannel0 to flannel{DEVICES_MAX - 1} are all taken: remove some with 'ip link del NAME'")


def _explain(code: object, failed: Exception) -> str:
    if code in (errno.EPERM, errno.EACCES):
        return "cannot create the tunnel device: needs CAP_NET_ADMIN; run as root"
    if code in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return "cannot create the tunnel device: /dev/net/tun is missing; run 'modprobe tun'"
    return f"cannot create the tunnel device: {failed}"
