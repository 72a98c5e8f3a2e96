"""Open the TUN device: the one of a given name, or flannel0 or the next free flannelN."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Sequence
from typing import Protocol

import pytun

from flannel_udp.dataplane.claims import NO_CLAIMS, Claims, device_claim
from flannel_udp.dataplane.tun_requests import (
    TUNGETIFF,
    TUNSETFILTEREBPF,
    TUNSETSTEERINGEBPF,
    TUNSETVNETBE,
    TUNSETVNETHDRSZ,
    TUNSETVNETLE,
)
from flannel_udp.errors import Claimed, FlannelError

# linux/if_tun.h; pytun does not name them all
IFF_VNET_HDR, IFF_MULTI_QUEUE, IFF_PERSIST = 0x4000, 0x0100, 0x0800
_INT = struct.Struct("=i")
_IFREQ = struct.Struct("=16sH22x")  # struct ifreq of netdevice(7), with ifr_flags
VNET_HEADER_BYTES = 10  # struct virtio_net_hdr, what a TUN with IFF_VNET_HDR uses until told otherwise
DEVICES_MAX = 256


class Queue(Protocol):
    """One queue of the device."""

    def fileno(self) -> int:
        """Return its descriptor."""
        ...

    def close(self) -> None:
        """Close it."""
        ...


class Tunnel:
    """An open TUN device without a packet-information header, each packet behind a virtio-net header.

    It has one queue a worker; the kernel keeps a flow on one queue. It removes the device, with its address and route,
    when the last descriptor is closed.
    """

    def __init__(self, queues: Sequence[Queue]) -> None:
        self._queues = tuple(queues)
        self.name, flags = _facts(queues[0].fileno())
        self.index = socket.if_nametoindex(self.name)
        """The device's interface index, which no other device gets while this machine is up (in one namespace)."""
        self.persistent = bool(flags & IFF_PERSIST)
        """Whether the device stays when it is closed: then somebody else made it."""
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


def open_tunnel(n_queues: int, claims: Claims = NO_CLAIMS, only: str | None = None) -> Tunnel:
    """Open the device called `only`; ``None``: flannel0 or, where that is taken, the next free name (flanneld's way).

    A persistent device that a killed run left behind is free and so is taken over.
    Raises FlannelError.
    """
    for name in [f"flannel{number}" for number in range(DEVICES_MAX)] if only is None else [only]:
        there = _index(name)
        queues: list[pytun.TunTapDevice] = []
        try:
            # Before a queue is opened: one more queue of another agent's device would get some of its packets.
            if there is not None:
                claims.hold(device_claim(there))
            for _ in range(n_queues):
                queues.append(_open_queue(name, n_queues > 1))
            tunnel = Tunnel(queues)
            claims.hold(device_claim(tunnel.index))
            if tunnel.persistent:
                _undo_foreign_settings(queues[0].fileno())
            elif there is not None:  # only its holder keeps such a device alive: one that claims nothing
                raise Claimed(f"another program has {name} open")
            return tunnel
        except (pytun.Error, OSError, FlannelError) as failed:
            for queue in queues:
                queue.close()
            if there is not None and not isinstance(failed, Claimed):
                claims.let_go(device_claim(there))
            if isinstance(failed, Claimed):
                continue
            if isinstance(failed, FlannelError):  # deleted as soon as it was made
                raise
            code = failed.args[0] if failed.args else None
            # EBUSY: another process has it open. EINVAL: a device of this name is no TUN, or not with as many queues.
            if code != errno.EBUSY and not (code == errno.EINVAL and _index(name) is not None):
                raise FlannelError(_explain(code, failed, n_queues)) from failed
    if only is not None:
        raise FlannelError(f"{only} is another program's, or no TUN device of ours: `ip -d link show {only}` shows it")
    raise FlannelError(f"flannel0 to flannel{DEVICES_MAX - 1} are all taken: remove some with 'ip link del NAME'")


def _index(name: str) -> int | None:
    """Return the index of a device, ``None`` if there is none of that name."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return None


def _undo_foreign_settings(fd: int) -> None:
    """Give a device that somebody else made what a new one has: all of it stays with the device when it is closed."""
    for request, value in (
        (TUNSETVNETHDRSZ, VNET_HEADER_BYTES),
        (TUNSETVNETLE, 0),  # the host's byte order, unless the next one says otherwise
        (TUNSETVNETBE, 0),
        (TUNSETSTEERINGEBPF, -1),  # no program picks the queue
        (TUNSETFILTEREBPF, -1),  # and none drops packets
    ):
        try:
            fcntl.ioctl(fd, request, _INT.pack(value))
        except OSError as unknown:  # to an older kernel, or one built without it: nobody can have set it then
            if unknown.errno not in (errno.EINVAL, errno.ENOTTY):
                raise


class _AdoptedQueue:
    """A queue that was opened by another process."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        os.close(self._fd)


def adopt_tunnel(queues: Sequence[int], only: str | None = None) -> Tunnel:
    """Return the open device that these descriptors are all the queues of; they are the tunnel's from now on.

    Raises FlannelError, and closes them, for anything but a live device that this agent could have made, with the name
    `only` where one is given.
    """
    wanted = pytun.IFF_TUN | pytun.IFF_NO_PI | IFF_VNET_HDR | (IFF_MULTI_QUEUE if len(queues) > 1 else 0)
    try:
        facts = {_facts(fd) for fd in queues}
        if len(facts) != 1 or any(flags & ~IFF_PERSIST != wanted for _, flags in facts):
            raise FlannelError("the descriptors that were handed over are not the queues of one tunnel device of ours")
        if only not in (None, *(name for name, _ in facts)):
            raise FlannelError(f"the tunnel device that was handed over is not {only}")
        return Tunnel([_AdoptedQueue(fd) for fd in queues])
    except (FlannelError, OSError) as unfit:
        for fd in queues:
            os.close(fd)
        if isinstance(unfit, OSError):  # deleted, or moved to another namespace
            raise FlannelError(f"the tunnel device that was handed over is of no use: {unfit.strerror}") from unfit
        raise


def device_of(fd: int) -> str | None:
    """Return the name of the open device that goes with its last descriptor; ``None`` for one that stays anyway.

    Raises FlannelError if it is none, or was deleted.
    """
    name, flags = _facts(fd)
    return None if flags & IFF_PERSIST else name


def _facts(fd: int) -> tuple[str, int]:
    """Return the name and the flags of an open device. Raises FlannelError if it is none, or was deleted."""
    try:
        name, flags = _IFREQ.unpack(fcntl.ioctl(fd, TUNGETIFF, bytes(_IFREQ.size)))
    except OSError as error:
        raise FlannelError(f"a descriptor of the tunnel device is of no use: {error.strerror}") from error
    return name.rstrip(b"\0").decode(), flags


def _open_queue(name: str, several: bool) -> pytun.TunTapDevice:
    flags = pytun.IFF_TUN | pytun.IFF_NO_PI | IFF_VNET_HDR
    return pytun.TunTapDevice(name, flags=flags | IFF_MULTI_QUEUE if several else flags)


def _explain(code: object, failed: Exception, n_queues: int) -> str:
    if code in (errno.EPERM, errno.EACCES):
        return "cannot create the tunnel device: needs CAP_NET_ADMIN; run as root"
    if code in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return "cannot create the tunnel device: /dev/net/tun is missing; run 'modprobe tun'"
    if code == errno.EINVAL:  # of a new device: a driver that is not the usual one (gVisor's, say)
        lacking = "takes no packets behind virtio-net headers (IFF_VNET_HDR)"
        more = ", or no several queues (IFF_MULTI_QUEUE): try --workers=1" if n_queues > 1 else ""
        return f"cannot create the tunnel device: the TUN driver of this kernel {lacking}{more}"
    return f"cannot create the tunnel device: {failed}"
