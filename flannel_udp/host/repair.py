"""What is wrong with a device, and how soon it may be put right again: decisions only, no system call."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from flannel_udp.model import Interface

BURST = 10
"""So many repairs within `WINDOW_S` are made at once; whoever undoes more of them fights with us."""
WINDOW_S = 300.0
LONGEST_PAUSE_S = 30.0


@dataclass(frozen=True, slots=True)
class LinkState:
    """What the kernel knows of one network device; ``mtu`` in bytes, ``up`` means administratively up."""

    name: str
    index: int
    mtu: int
    up: bool
    addresses: tuple[IPv4Interface, ...]

    def has(self, address: IPv4Address) -> bool:
        """Tell whether this is one of the device's own addresses, with whatever prefix."""
        return any(item.ip == address for item in self.addresses)


@dataclass(frozen=True, slots=True)
class TunnelShape:
    """What flannel0 has to be: ``address`` as a /32, ``mtu`` in bytes, and the overlay's one route, to ``network``."""

    address: IPv4Address
    network: IPv4Network
    mtu: int


def differences(wanted: TunnelShape, link: LinkState, routed: bool) -> list[str]:
    """Return what flannel0 needs; `routed`: its route is there. What else is on the device is not ours."""
    found = {
        "mtu": link.mtu == wanted.mtu,
        # The last address takes the routes along, and so does a link that goes down: route last.
        "address": IPv4Interface((wanted.address, 32)) in link.addresses,
        "link": link.up,
        "route": routed,
    }
    return [what for what, right in found.items() if not right]


def why_lost(external: Interface, found: LinkState | None) -> str | None:
    """Return why no outer packet can leave where it did; `found` is the interface's device, ``None`` if it is gone."""
    if found is None or found.name != external.name:
        return f"interface {external.name} is gone"
    if not found.up:
        return f"interface {external.name} is down"
    if not found.has(external.address):
        return f"interface {external.name} has lost its address {external.address}"
    return None


class Pace:
    """Says how long the next repair has to wait: not at all, unless there were many lately. Times in seconds."""

    def __init__(self) -> None:
        self._made: deque[float] = deque()  # when, within the last WINDOW_S
        self._slow = False

    def note(self, now_s: float) -> bool:
        """Note a repair; return whether it is the one with which pauses begin, after a time without any."""
        self._forget(now_s)
        self._slow &= bool(self._made)
        self._made.append(now_s)
        began = len(self._made) >= BURST and not self._slow
        self._slow |= began
        return began

    def pause_s(self, now_s: float) -> float:
        """Return how long to wait from now on: the pause doubles with every repair from the `BURST`th on."""
        self._forget(now_s)
        beyond = len(self._made) - BURST
        return 0.0 if beyond < 0 else max(self._made[-1] + min(2.0**beyond, LONGEST_PAUSE_S) - now_s, 0.0)

    def _forget(self, now_s: float) -> None:
        while self._made and self._made[0] <= now_s - WINDOW_S:
            self._made.popleft()
