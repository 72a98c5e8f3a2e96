"""What the kernel would do with one packet that comes in through a device, or from the host itself. Blocks."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from flannel_udp.host.links import device
from flannel_udp.host.lookup.diversions import find_pods
from flannel_udp.host.lookup.question import (
    RTN_LOCAL,
    DeviceNames,
    Entry,
    Question,
    Way,
    ask,
    understand,
)
from flannel_udp.host.lookup.verdicts import describe
from flannel_udp.host.rtnetlink import RTN_UNICAST, Rtnetlink, open_rtnetlink
from flannel_udp.model import Address, Prefix

_NOT_FROM_THERE = (errno.EINVAL, errno.EXDEV)  # a martian, or rp_filter: __fib_validate_source in the kernel


@dataclass(frozen=True, slots=True)
class PacketWay:
    """The entry of the kernel's tables for a packet; `route` has it in `ip route`'s words, or why there is none."""

    route: str
    local: bool = False
    """It is for the host itself."""
    way: Way | None = None
    """Where it leads, ``None`` where packets are refused or delivered."""
    device: str | None = None
    """That device's name."""
    mtu: int | None = None
    """And its MTU in bytes."""


def find_inlet(source: Address, own: Prefix | None, tunnel: int) -> int | None:
    """Return the device (its index) by which a packet of this source comes in to be sent to others.

    0: it is the host's own; ``None``: nobody knows, as there is no bridge of pods. `tunnel` is the index of the
    overlay's device, 0 for none. Raises `FlannelError`.
    """
    with open_rtnetlink(f"asking the kernel about {source}") as netlink:
        answer = understand(ask(netlink, [Question(source)])[0])
        if isinstance(answer, Entry) and answer.type == RTN_LOCAL:
            return 0
        pods = None if own is None else find_pods(netlink, own, tunnel)
        return None if pods is None else pods.bridge


def find_way(source: Address, destination: Address, inlet: int) -> PacketWay:
    """Return what the kernel does with such a packet that comes in by a device; 0: it is the host's own.

    Raises `FlannelError`.
    """
    with open_rtnetlink(f"asking the kernel about {destination}") as netlink:
        return _find_way(netlink, source, destination, inlet)


def _find_way(netlink: Rtnetlink, source: Address, destination: Address, inlet: int) -> PacketWay:
    names = DeviceNames(netlink)
    question = Question(destination, source, inlet) if inlet else Question(destination)
    answer = understand(ask(netlink, [question])[0])
    if inlet and answer in _NOT_FROM_THERE:
        return PacketWay(f"refused: nothing from {source} to {destination} is taken from {names[inlet]}")
    text = describe(answer, names)
    if not isinstance(answer, Entry):
        return PacketWay(text)
    if answer.type != RTN_UNICAST or not answer.hops:
        return PacketWay(text, local=answer.type == RTN_LOCAL)
    way = answer.hops[0]
    found = device(netlink, way.device)
    return PacketWay(text, way=way, device=names[way.device], mtu=None if found is None else found.mtu)
