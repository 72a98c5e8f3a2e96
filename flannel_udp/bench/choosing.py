"""What `bench run` measures by name, and what each of it needs on this machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flannel_udp.bench.contenders import CONTENDERS, Opener, agents
from flannel_udp.bench.metrics import OURS
from flannel_udp.bench.names import RTT, RTT_LOADED, TCP_BOTH, needs_blast, streams_of
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
    of: Callable[[str], bool]
    is_here: Callable[[], bool]
    how: str


def _some(*names: str) -> Callable[[str], bool]:
    return lambda name: name in names


_pings = _some(RTT, RTT_LOADED)


def _streams(name: str) -> bool:
    return streams_of(name) is not None or name in (TCP_BOTH, RTT_LOADED)


def _command(name: str, package: str, of: Callable[[str], bool]) -> _Need:
    return _Need(f"the command {name}", of, lambda: shutil.which(name) is not None, f"install the package {package}")


def has_wireguard() -> bool:
    """Tell whether wireguard-go, and what sets it up, are installed."""
    return shutil.which(WIREGUARD) is not None and shutil.which("wg") is not None


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
    _command("iperf3", "iperf3", _streams),
    _command("ping", "iputils-ping", _pings),
    _command("cc", "gcc", lambda name: name == "naive" or needs_blast(name)),
)
"""What measures need, in a lab and between two machines."""
_IN_LABS = (
    *_ANYWHERE,
    _command("bridge", "iproute2", _some("vxlan")),
    _command("tc", "iproute2", _some("slow-1g", "slow-100m")),
    _command(WIREGUARD, WIREGUARD, _some(WIREGUARD)),
    _command("wg", "wireguard-tools", _some(WIREGUARD)),
    _Need("the device /dev/net/tun", _some("naive", "udp", "vxlan-userspace", WIREGUARD), has_tun, "modprobe tun"),
    _Need("VXLAN in the kernel", _some("vxlan"), has_kernel_vxlan, "modprobe vxlan"),
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
    root = _Need("root", _pings, lambda: os.geteuid() == 0, "one ping a millisecond is root's: run it with sudo")
    return _lacking(measures, (*_ANYWHERE, root))


def lacking_to_count() -> list[str]:
    """Return what this machine lacks to count datagrams that another one sends: nothing of it is needed otherwise."""
    lacks = [] if shutil.which("cc") else ["a C compiler (the package gcc)"]
    # A receive buffer beyond net.core.rmem_max is root's; with a small one the receiver itself would lose datagrams.
    return lacks if os.geteuid() == 0 else [*lacks, "root: run `bench serve` with sudo there"]


def _lacking(asked: Sequence[str], needs: Sequence[_Need]) -> list[str]:
    """Return a line for each that is asked for and not here."""
    lines = []
    for need in needs:
        users = list(filter(need.of, asked))
        if users and not need.is_here():
            lines.append(
                f"{', '.join(users)}: needs {need.what}, which is not here: {need.how}, or leave out what needs it"
            )
    return lines
