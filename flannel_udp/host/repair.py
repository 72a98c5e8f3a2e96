"""What is wrong with a device, and how soon it may be put right again: decisions only, no system call."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Hashable, Set
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from typing import NamedTuple

from flannel_udp.model import Address, Interface, Prefix

BURST = 10
"""So many repairs within `WINDOW_S` are made at once; whoever undoes more of them fights with us."""
WINDOW_S = 300.0
LONGEST_PAUSE_S = 30.0
SETTLED_S = 1.0
"""What is wrong again within that time of its repair is undone by somebody; what has stood for so long is right."""


@dataclass(frozen=True, slots=True)
class LinkState:
    """What the kernel knows of one network device; ``mtu`` in bytes, ``up`` means administratively up.

    See `host.links.Device` for `carrier` and `makes_ipv6_addresses`.
    """

    name: str
    index: int
    mtu: int
    up: bool
    addresses: tuple[IPv4Interface | IPv6Interface, ...]
    carrier: bool = True
    makes_ipv6_addresses: bool = False

    def has(self, address: Address) -> bool:
        """Tell whether this is one of the device's own addresses, with whatever prefix."""
        return any(item.ip == address for item in self.addresses)


@dataclass(frozen=True, slots=True)
class TunnelEnd:
    """What flannel0 has for one IP family: ``address`` alone (/32, /128), and the overlay's route, to ``network``."""

    address: Address
    network: Prefix

    @property
    def version(self) -> int:
        """The family's IP version."""
        return self.network.version


@dataclass(frozen=True, slots=True)
class TunnelShape:
    """What flannel0 has to be: an end for each family, IPv4's first, and ``mtu`` in bytes."""

    ends: tuple[TunnelEnd, ...]
    mtu: int


class Fault(NamedTuple):
    """What is not as it should be: of the device itself, or of what one family has on it."""

    what: str
    end: TunnelEnd | None = None


def differences(wanted: TunnelShape, link: LinkState, routed: Set[Prefix]) -> list[Fault]:
    """Return what flannel0 needs; `routed`: routes that are there. What else is on the device is not ours."""
    # The last address takes the routes along, and so does a link that goes down: route last.
    addresses = [Fault("address", end) for end in wanted.ends if _alone(end.address) not in link.addresses]
    routes = [Fault("route", end) for end in wanted.ends if end.network not in routed]
    found = {
        Fault("mtu"): link.mtu == wanted.mtu,
        Fault("ipv6"): not link.makes_ipv6_addresses,
        **dict.fromkeys(addresses, False),
        Fault("link"): link.up and link.carrier,
        **dict.fromkeys(routes, False),
    }
    return [fault for fault, right in found.items() if not right]


def _alone(address: Address) -> IPv4Interface | IPv6Interface:
    return ip_interface((address, address.max_prefixlen))


def why_lost(external: Interface, found: LinkState | None, elsewhere: Set[Address]) -> dict[int, str]:
    """Return why no outer packet of a family can leave where it did, by IP version; nothing where all can.

    `found` is the interface's device, ``None`` if it is gone. Addresses that are `elsewhere` were on another interface,
    `lo`, say, when this one was chosen, and are there still. A device that was given another name is the same one.
    """
    ends = {version: ends for version in (4, 6) if (ends := external.of(version)) is not None}
    if found is None:
        return dict.fromkeys(ends, f"interface {external.name} is gone")
    if not found.up:
        return dict.fromkeys(ends, f"interface {external.name} is down")
    return {
        version: f"interface {external.name} has lost its address {end.address}"
        for version, end in ends.items()
        if not found.has(end.address) and end.address not in elsewhere
    }


@dataclass(frozen=True, slots=True)
class Standing:
    """How what has to be kept right stands after a look, and after what could be put right was."""

    obstacles: tuple[str, ...] = ()
    """Why no traffic can pass, one line each."""
    problems: tuple[str, ...] = ()
    """What stops some of the traffic, likewise."""
    again_s: float | None = None
    """Look again after so many seconds, also if the kernel reports nothing."""


STANDS = Standing()
"""All is right."""


def both(one: Standing, other: Standing) -> Standing:
    """Return how two things stand together."""
    waits = [wait_s for wait_s in (one.again_s, other.again_s) if wait_s is not None]
    return Standing(one.obstacles + other.obstacles, one.problems + other.problems, min(waits, default=None))


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


class Paces:
    """A pace for each fault, so that who undoes one repair again and again delays no other one; times in seconds.

    Call `looked` with all that a look has found wrong, then for each of them `due`, and `made` if it was put right.
    """

    def __init__(self) -> None:
        self._paces: dict[Hashable, Pace] = {}
        self._made_s: dict[Hashable, float] = {}  # when each was put right last
        self._contested: set[Hashable] = set()

    def looked(self, wrong: Collection[Hashable], now_s: float) -> None:
        """Note what is wrong at this moment."""
        for what in wrong:
            if not self.due(what, now_s) or now_s - self._made_s.get(what, -SETTLED_S) < SETTLED_S:
                self._contested.add(what)
        for what, made_s in list(self._made_s.items()):
            old = now_s - made_s >= WINDOW_S
            if old or (what not in wrong and now_s - made_s >= SETTLED_S):
                self._contested.discard(what)
            if old:
                del self._made_s[what], self._paces[what]

    def due(self, what: Hashable, now_s: float) -> bool:
        """Tell whether this may be put right now."""
        return what not in self._paces or self._paces[what].pause_s(now_s) <= 0

    def made(self, what: Hashable, now_s: float) -> bool:
        """Note that it was put right; return whether from now on there are pauses, after a time without."""
        self._made_s[what] = now_s
        return self._paces.setdefault(what, Pace()).note(now_s)

    def contested(self, what: Hashable) -> bool:
        """Tell whether somebody undoes its repair: it was wrong again soon, and has not stood for a while since."""
        return what in self._contested

    def again_s(self, now_s: float) -> float | None:
        """Return when to look again for the sake of what is contested: it is due then, or has stood long enough."""
        waits = [
            max(self._paces[what].pause_s(now_s), self._made_s[what] + SETTLED_S - now_s)
            for what in self._contested
            if what in self._made_s
        ]
        return max(min(waits), 0.0) if waits else None
