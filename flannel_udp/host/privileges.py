"""May this process do what the agent does? Asked first, so that the answer is one line and nothing is half-done."""

from __future__ import annotations

import errno
import fcntl
import os
import re
from pathlib import Path

from flannel_udp.errors import FlannelError

TUN_DEVICE = Path("/dev/net/tun")

_NEEDED = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13}
"""Bit numbers of linux/capability.h: devices, addresses and routes; raw packets."""

_NS_GET_USERNS = 0xB701  # linux/nsfs.h: _IO(0xb7, 0x1)


def shows_password(password: str) -> bool:
    """Whether the command line, which every user of the machine may read in /proc/PID/cmdline, holds the password."""
    words = os.fsencode(password)
    try:
        arguments = Path("/proc/self/cmdline").read_bytes().split(b"\0")
    except OSError:  # nobody can read it there either
        return False
    return bool(words) and any(word == words or word.endswith(b"=" + words) for word in arguments)


def check_privileges() -> None:
    """Raise `FlannelError`, saying what to do, unless the capabilities are there that every backend needs."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError as failed:
        raise FlannelError(f"cannot read {failed.filename}: {failed.strerror}: is /proc mounted here?") from failed
    missing = missing_capabilities(status)
    if missing:
        raise FlannelError(
            f"missing {' and '.join(missing)}: run as root, or grant the capabilities "
            "(systemd: AmbientCapabilities=, a container: --cap-add)"
        )
    if not _owns_network_namespace():
        raise FlannelError(
            "the capabilities of this user namespace do not reach its network namespace: "
            "run as the host's root, or in a network namespace of the same user namespace (unshare --user --net)"
        )


def missing_capabilities(proc_status: str) -> list[str]:
    """Return the needed capabilities that are not in effect, from the text of /proc/PID/status."""
    match = re.search(r"^CapEff:\s*([0-9a-fA-F]+)$", proc_status, re.MULTILINE)
    effective = int(match[1], 16) if match else 0
    return [name for name, bit in _NEEDED.items() if not effective >> bit & 1]


def _owns_network_namespace() -> bool:
    """Whether our capabilities count where we are.

    In a user namespace CapEff is full, and yet a network namespace that belongs to the parent's is out of reach. The
    kernel names a namespace's owner only if that is our user namespace or one below it (ioctl_ns(2): EPERM otherwise),
    which is exactly where our capabilities hold.
    """
    with Path("/proc/self/ns/net").open("rb") as namespace:
        try:
            os.close(fcntl.ioctl(namespace, _NS_GET_USERNS))
        except OSError as error:
            # A kernel that cannot tell (ENOTTY, as some sandboxes') leaves it to the operations themselves.
            return error.errno != errno.EPERM
    return True


def check_tun() -> None:
    """Raise `FlannelError`, saying what to do, unless a TUN device can be made: not every backend needs one."""
    try:
        # Opening makes no device yet, and tells more than the file's mode: cgroups may forbid it, the driver be absent.
        os.close(os.open(TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        match error.errno:
            case errno.ENOENT | errno.ENODEV | errno.ENXIO:
                todo = "load the driver (modprobe tun); in a container add the device (--device /dev/net/tun)"
            case errno.EACCES | errno.EPERM:
                todo = "let this user read and write it; in a container add the device (--device /dev/net/tun)"
            case _:
                todo = "the agent needs it to make its tunnel device"
        raise FlannelError(f"cannot open {TUN_DEVICE}: {error.strerror}: {todo}") from error
