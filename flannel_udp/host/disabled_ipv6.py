"""IPv6 that is switched off on a device, or in the whole kernel: what is said of it."""

from __future__ import annotations

from pathlib import Path

from flannel_udp.host.family import IPV6

_SETTINGS = Path("/proc/sys/net/ipv6")


def why_no_ipv6(device: str) -> str:
    """Return one clause, with what to do, on why a device takes no IPv6 address (EACCES, EOPNOTSUPP)."""
    if not _SETTINGS.exists():
        return "this host's kernel has no IPv6: is ipv6.disable=1 on its command line?"
    return f"IPv6 is disabled on {device}: sysctl -w {IPV6.setting(device, 'disable_ipv6')}=0"
