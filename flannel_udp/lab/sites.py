"""What may be between a lab's hosts: cables that are worse than perfect, and routers with networks behind them. Values.

    r1      on the network above it 192.0.2.201; behind it 172.16.1.0/24, whose gateway it is by .254
    r2      behind r1: 172.16.1.202; behind it 172.16.2.0/24

IPv6 likewise by 2001:db8:1::/64 and so on: r1 is ::c9 above. What is behind one router is called a site.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from flannel_udp.model import Address, Prefix

UNDERLAY = IPv4Network("192.0.2.0/24")  # RFC 5737: TEST-NET-1
UNDERLAY_V6 = IPv6Network("2001:db8::/64")  # RFC 3849: documentation
MAX_HOSTS, MAX_ROUTERS = 200, 50
"""What fits in a /24 beside the gateway: hosts have .1 to .200, routers .201 to .250."""
GATEWAY_NUMBER = 254
"""Of the bridge among the addresses of its network: .254, ::fe."""
MAX_DELAY_MS = 2_000.0


@dataclass(frozen=True, slots=True)
class Cable:
    """What a cable carries in each direction; without anything said a perfect one."""

    rate: int | None = None
    """Bits a second; no limit by default."""
    delay_ms: float = 0.0
    loss: float = 0.0
    """The share of frames that is lost: 0 to 1."""
    mtu: int | None = None
    """Bytes; those of the network that it leads to by default."""

    @property
    def is_relayed(self) -> bool:
        """Whether a program of ours carries its frames: the kernel has neither delay nor loss everywhere."""
        return self.delay_ms > 0 or self.loss > 0

    @property
    def words(self) -> list[str]:
        """What is worse than perfect, in words; its MTU is left out."""
        found = [] if self.rate is None else [shown_rate(self.rate)]
        found += [f"{self.delay_ms:g} ms"] if self.delay_ms else []
        return found + ([f"{self.loss * 100:.4g} % lost"] if self.loss else [])


@dataclass(frozen=True, slots=True)
class Router:
    """A router, its uplink on the network above it, and the one network behind it."""

    nat: bool = False
    """Whether hosts behind it go out by its own IPv4 address, and nobody outside has a route to theirs."""
    forward: str | None = None
    """With `nat`: the host that the overlay's UDP port of that address is passed on to."""
    mtu: int | None = None
    """Bytes, of the network behind it; the underlay's by default."""


def shown_rate(bits_s: int) -> str:
    """Return a rate as people write it."""
    for unit, name in ((10**9, "Gbit/s"), (10**6, "Mbit/s")):
        if bits_s >= unit:
            return f"{bits_s / unit:g} {name}"
    return f"{bits_s / 1000:g} kbit/s"


def number_of(name: str) -> int:
    """Return the number in the name of a host or a router."""
    return int(name[1:])


def network_behind(router: str | None, version: int) -> Prefix:
    """Return the network behind a router, ``None``: the one that all the rest hangs from."""
    if router is None:
        return UNDERLAY if version == 4 else UNDERLAY_V6
    if version == 4:
        return IPv4Network(f"172.16.{number_of(router)}.0/24")  # RFC 1918: private
    return IPv6Network(f"2001:db8:{number_of(router):x}::/64")


def address_in(network: Prefix, name: str) -> Address:
    """Return the address of a host, or of a router's uplink, in a network that it is on."""
    return network[number_of(name) + (MAX_HOSTS if name.startswith("r") else 0)]


def circle_of(behind: Mapping[str, str]) -> list[str]:
    """Return the routers of a circle, in which each is behind the next; nothing where there is none."""
    for start in behind:
        way = [start]
        while (above := behind.get(way[-1])) is not None:
            if above in way:
                return way[way.index(above) :]
            way.append(above)
    return []


def in_order(behind: Mapping[str, str], routers: Iterable[str]) -> list[str]:
    """Return routers that are in no circle, each after the one that it is behind."""

    def depth(name: str) -> int:
        above = behind.get(name)
        return 0 if above is None else 1 + depth(above)

    return sorted(routers, key=lambda name: (depth(name), number_of(name)))
