"""IPv6 that is switched off on a device, or in the whole kernel: what is said of it, and done about it."""

from __future__ import annotations

import errno
import socket
from contextlib import suppress
from pathlib import Path

from flannel_udp.host.family import IPV6

_SETTINGS = Path("/proc/sys/net/ipv6")


def why_no_ipv6(device: str) -> str:
    """Return one clause, with what to do, on why a device takes no IPv6 address (EACCES, EOPNOTSUPP)."""
    if not _kernel_has_ipv6():
        return "this host's kernel has no IPv6: is ipv6.disable=1 on its command line?"
    return f"IPv6 is disabled on {device}: sysctl -w {IPV6.setting(device, 'disable_ipv6')}=0"


def why_ipv6_is_off(device: str) -> str | None:
    """Return the same where IPv6 is off on a device, ``None`` where it is on."""
    try:
        on = (_SETTINGS / "conf" / device / "disable_ipv6").read_text().strip() == "0"
    except OSError:
        on = _kernel_has_ipv6()
    return None if on else why_no_ipv6(device)


def allow_ipv6(device: str) -> None:
    """Switch IPv6 on for a device of ours, as hosts may have it off on new ones (net.ipv6.conf.default.disable_ipv6).

    A program that may not write there, in a container, say, leaves it as it is.
    """
    with suppress(OSError):
        (_SETTINGS / "conf" / device / "disable_ipv6").write_text("0\n")


def _kernel_has_ipv6() -> bool:
    """Ask by a socket: all of /proc/sys may be hidden (systemd's ProcSubset=pid)."""
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
    except OSError as failed:
        return failed.errno != errno.EAFNOSUPPORT
    return True
