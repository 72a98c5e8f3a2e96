"""Kernels that are known to do wrong what they grant. Distributions mend such things without another number: "may"."""

from __future__ import annotations

import re
from dataclasses import dataclass

from flannel_udp.options import Offload

_Version = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class _Fault:
    first: _Version
    last: _Version
    rung: str
    what: str


_FAULTS = (
    _Fault((7, 0, 0), (7, 1, 4), "udp-segment", "some network cards may cut datagrams wrongly (UDP_SEGMENT)"),
    _Fault((6, 2, 0), (6, 8, 4), "join-udp", "joined UDP may be lost on its way into a VXLAN inside the overlay"),
)


def kernel_faults(release: str, offload: Offload) -> list[str]:
    """Return a sentence for each fault that the kernel `release` (uname -r) may have with the offloads in use."""
    numbers = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", release)
    if numbers is None:
        return []
    major, minor, patch = (int(number or 0) for number in numbers.groups())
    return [
        f"Linux {release}: {fault.what}, as in {_text(fault.first)} to {_text(fault.last)}; "
        f"if packets are lost, leave {fault.rung} out of --offload"
        for fault in _FAULTS
        if fault.first <= (major, minor, patch) <= fault.last and fault.rung in offload.names()
    ]


def _text(version: _Version) -> str:
    """Return a version as people write it: 6.2, 6.8.4."""
    return ".".join(map(str, version[:2] if version[2] == 0 else version))
