"""``subnet.env``: the file that tells the container runtime which subnet, MTU and masquerading this host has.

Written as flannel does, byte for byte; read back by the lease keeper (which subnet did we have?) and the CNI plugin,
which is started for every pod: so this module imports nothing heavy.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from flannel_udp.errors import FlannelError
from flannel_udp.files.atomic import write_atomically
from flannel_udp.model import Prefix, Subnet

_ASSIGNMENT = re.compile(
    r"""^[ \t]* (?:export[ \t]+)? (?P<key>[A-Za-z_][A-Za-z0-9_]*) =
        (?: "(?P<double>[^"\n]*)" | '(?P<single>[^'\n]*)' | (?P<bare>[^\s"'\#]*) )
        [ \t\r]* (?:\#.*)? $""",
    re.MULTILINE | re.VERBOSE,
)
_IPV4, _IPV6 = ("FLANNEL_NETWORK", "FLANNEL_SUBNET"), ("FLANNEL_IPV6_NETWORK", "FLANNEL_IPV6_SUBNET")
_ALWAYS = ("FLANNEL_MTU", "FLANNEL_IPMASQ")
DIRECTORY_MODE = 0o755
_BOOLEANS = {"true": True, "false": False}


@dataclass(frozen=True, slots=True)
class SubnetEnv:
    """What the file holds. ``mtu`` is the tunnel's, in bytes.

    ``network`` is set exactly if ``subnet.v4`` is, and ``ipv6_network`` if ``subnet.v6`` is.
    """

    network: IPv4Network | None
    subnet: Subnet
    mtu: int
    ip_masq: bool
    ipv6_network: IPv6Network | None = None

    @property
    def networks(self) -> tuple[Prefix, ...]:
        """The overlay networks, that of IPv4 first."""
        return tuple(network for network in (self.network, self.ipv6_network) if network is not None)

    def network_of(self, version: int) -> Prefix | None:
        """Return the overlay network of one family, by IP version; ``None``: it is off."""
        return self.network if version == 4 else self.ipv6_network

    def gateway_of(self, version: int) -> str | None:
        """Return the first host address of a family's subnet with its prefix length, as FLANNEL_SUBNET holds it."""
        subnet = self.subnet.of(version)
        return None if subnet is None else f"{subnet.network_address + 1}/{subnet.prefixlen}"


class SubnetEnvMissing(FlannelError):
    """There is no such file, and somebody needs it."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"there is no {path}: the agent writes it once it has a lease; is it running?")


class SubnetEnvError(FlannelError):
    """The file exists and cannot be understood; ``missing`` names the keys it lacks."""

    def __init__(self, message: str, missing: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.missing = missing


def read(path: Path) -> SubnetEnv | None:
    """Return what the file holds, ``None`` if there is none. Raises `SubnetEnvError`."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SubnetEnvError(f"cannot read {path}: {error.strerror}") from error
    return parse(text, str(path))


def require(path: Path) -> SubnetEnv:
    """Return what the file holds. Raises `SubnetEnvMissing`, `SubnetEnvError`."""
    env = read(path)
    if env is None:
        raise SubnetEnvMissing(path)
    return env


def parse(text: str, origin: str) -> SubnetEnv:
    """Parse the file's text, tolerating what a shell would: comments, quotes, ``export``, other keys, any order.

    `origin` names the source in errors. Raises `SubnetEnvError`.
    """
    values = {m["key"]: m["double"] or m["single"] or m["bare"] or "" for m in _ASSIGNMENT.finditer(text)}
    # The two keys of a family come together or not at all, and one family there is.
    has_ipv4, has_ipv6 = (any(values.get(key) for key in keys) for keys in (_IPV4, _IPV6))
    neither = not has_ipv4 and not has_ipv6
    required = [
        key
        for keys in zip(_IPV4, _IPV6, strict=True)
        for key, wanted in zip(keys, (has_ipv4 or neither, has_ipv6 or neither), strict=True)
        if wanted
    ]
    missing = tuple(key for key in (*required, *_ALWAYS) if not values.get(key))
    if missing:
        raise SubnetEnvError(f"{origin} lacks {', '.join(missing)}", missing)

    def value_of(key: str) -> _Value:
        return _Value(values[key], f"{origin}: {key}")

    return SubnetEnv(
        network=value_of("FLANNEL_NETWORK").ipv4_network() if has_ipv4 else None,
        subnet=Subnet(
            value_of("FLANNEL_SUBNET").ipv4_network() if has_ipv4 else None,
            value_of("FLANNEL_IPV6_SUBNET").ipv6_network() if has_ipv6 else None,
        ),
        mtu=value_of("FLANNEL_MTU").mtu(),
        ip_masq=value_of("FLANNEL_IPMASQ").boolean(),
        ipv6_network=value_of("FLANNEL_IPV6_NETWORK").ipv6_network() if has_ipv6 else None,
    )


@dataclass(frozen=True, slots=True)
class _Value:
    """A value with the place to name when it is wrong."""

    text: str
    place: str

    def ipv4_network(self) -> IPv4Network:
        """FLANNEL_SUBNET names a host of the subnet (10.1.15.1/24): the host bits are not ours to complain about."""
        with suppress(ValueError):
            if "/" in self.text:
                return IPv4Network(self.text, strict=False)
        raise self._error("an IPv4 network such as 10.1.0.0/16")

    def ipv6_network(self) -> IPv6Network:
        with suppress(ValueError):
            if "/" in self.text:
                return IPv6Network(self.text, strict=False)
        raise self._error("an IPv6 network such as fd00:1::/48")

    def mtu(self) -> int:
        if not re.fullmatch("[0-9]{1,5}", self.text) or not 0 < int(self.text) <= 65_535:
            raise self._error("a number of bytes from 1 to 65535")
        return int(self.text)

    def boolean(self) -> bool:
        if self.text not in _BOOLEANS:
            raise self._error("true or false")
        return _BOOLEANS[self.text]

    def _error(self, wanted: str) -> SubnetEnvError:
        return SubnetEnvError(f"{self.place} is {self.text[:60]!r}, not {wanted}")


def format_env(env: SubnetEnv) -> str:
    """Return the file's text in flannel's order; the subnet is written as its first host address."""
    lines: list[str] = []
    for version, (network, subnet) in ((4, _IPV4), (6, _IPV6)):
        if (gateway := env.gateway_of(version)) is not None:
            lines += [f"{network}={env.network_of(version)}", f"{subnet}={gateway}"]
    lines += [f"FLANNEL_MTU={env.mtu}", f"FLANNEL_IPMASQ={'true' if env.ip_masq else 'false'}"]
    return "\n".join(lines) + "\n"


def write(path: Path, env: SubnetEnv) -> None:
    """Replace the file (mode 0644) atomically, making its directory (0755) if need be: the runtime may not be root.

    A link stays, and what it leads to is written. A failed attempt leaves the old one and nothing else. Raises
    `FlannelError`.
    """
    try:
        write_atomically(
            Path(os.path.realpath(path)), format_env(env).encode("ascii"), mode=0o644, directory_mode=DIRECTORY_MODE
        )
    except OSError as error:
        raise FlannelError(f"cannot write {path}: {error.strerror}") from error
