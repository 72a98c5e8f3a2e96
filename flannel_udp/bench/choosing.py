"""What `bench run` measures by name, and what each of it needs on this machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flannel_udp.bench.contenders import CONTENDERS, Opener, agents
from flannel_udp.bench.measure import COMPILED
from flannel_udp.bench.metrics import OURS
from flannel_udp.bench.wireguard import NAME as WIREGUARD
from flannel_udp.bench.wireguard import open_wireguard
from flannel_udp.errors import FlannelError
from flannel_udp.lab import netns

SHOWN: Mapping[str, str] = {
    **{name: name for name in ("bare", "vxlan", "naive")},
    "udp": OURS,
    "vxlan-userspace": f"{OURS}-vxlan",
    **{name: name for name in ("host-gw", WIREGUARD)},
}
"""Contender → how results call it, in the order in which they are set up."""
_PINGS = ("rtt", "rtt-loaded")
_STREAMS = ("tcp1", "tcp4", "tcp-both", "rtt-loaded")
_TUN = Path("/dev/net/tun")


def openers_of(contenders: Sequence[str], offload: str) -> dict[str, Opener]:
    """Return what opens these contenders, by the names that results have; `offload` is our agents'."""
    ours = agents(("--offload", offload))
    table: dict[str, Opener] = {**CONTENDERS, **ours, WIREGUARD: open_wireguard}
    return {shown: table[shown] for name, shown in SHOWN.items() if name in contenders}


@dataclass(frozen=True, slots=True)
class _Need:
    """Something that some contenders or measures need, and what to do where it is lacking."""

    what: str
    of: Sequence[str]
    is_here: Callable[[], bool]
    how: str


def _command(name: str, package: str, of: Sequence[str]) -> _Need:
    return _Need(f"the command {name}", of, lambda: shutil.which(name) is not None, f"install the package {package}")


def has_tun() -> bool:
    """Tell whether there is the device that TUN devices are made with."""
    return _TUN.exists()


def has_kernel_vxlan() -> bool:
    """Tell whether the kernel makes a VXLAN device, by making one in a namespace that is gone afterwards."""
    name = f"flannel-udp-bench-{os.getpid()}"
    try:
        netns.ip_batch([f"netns add {name}"])
        try:
            netns.ip_batch(["link add probed type vxlan id 1 dstport 8472"], namespace=name)
        finally:
            netns.ip_batch([f"netns del {name}"])
    except FlannelError:
        return False
    return True


_ANYWHERE = (
    _command("iperf3", "iperf3", _STREAMS),
    _command("ping", "iputils-ping", _PINGS),
)
"""What measures need, in a lab and between two machines."""
_IN_LABS = (
    *_ANYWHERE,
    _command("cc", "gcc", ("naive", *sorted(COMPILED))),
    _command("bridge", "iproute2", ("vxlan",)),
    _command("tc", "iproute2", ("slow-1g", "slow-100m")),
    _command(WIREGUARD, WIREGUARD, (WIREGUARD,)),
    _command("wg", "wireguard-tools", (WIREGUARD,)),
    _Need("the device /dev/net/tun", ("naive", "udp", "vxlan-userspace", WIREGUARD), has_tun, "modprobe tun"),
    _Need("VXLAN in the kernel", ("vxlan",), has_kernel_vxlan, "modprobe vxlan"),
)


def lacking_in_labs(asked: Sequence[str]) -> list[str]:
    """Return a line for each thing that this machine lacks for these contenders, measures and underlay, in labs."""
    try:
        netns.require()
    except FlannelError as error:
        # Only root can ask the kernel for a device.
        return [str(error), *_lacking(asked, [need for need in _IN_LABS if need.is_here is not has_kernel_vxlan])]
    return _lacking(asked, _IN_LABS)


def lacking_between_hosts(measures: Sequence[str]) -> list[str]:
    """Return the same for measures between two machines."""
    root = _Need("root", _PINGS, lambda: os.geteuid() == 0, "one ping a millisecond is root's: run it with sudo")
    return _lacking(measures, (*_ANYWHERE, root))


def _lacking(asked: Sequence[str], needs: Sequence[_Need]) -> list[str]:
    """Return a line for each that is asked for and not here."""
    lines = []
    for need in needs:
        users = [name for name in asked if name in need.of]
        if users and not need.is_here():
            lines.append(
                f"{', '.join(users)}: needs {need.what}, which is not here: {need.how}, or leave out what needs it"
            )
    return lines
