"""``subnet.env``: the file that tells the container runtime which subnet, MTU and masquerading this host has.

Written as flannel does, byte for byte; read back by the lease keeper (which subnet did we have?) and the CNI plugin,
which is started for every pod: so this module imports nothing heavy.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from flannel_udp.errors import FlannelError
from flannel_udp.files.atomic import write_atomically
from flannel_udp.model import Subnet

_ASSIGNMENT = re.compile(
    r"""^[ \t]* (?:export[ \t]+)? (?P<key>[A-Za-z_][A-Za-z0-9_]*) =
        (?: "(?P<double>[^"\n]*)" | '(?P<single>[^'\n]*)' | (?P<bare>[^\s"'\#]*) )
        [ \t\r]* (?:\#.*)? $""",
    re.MULTILINE | re.VERBOSE,
)
_REQUIRED = ("FLANNEL_NETWORK", "FLANNEL_SUBNET", "FLANNEL_MTU", "FLANNEL_IPMASQ")
_IPV6 = ("FLANNEL_IPV6_NETWORK", "FLANNEL_IPV6_SUBNET")
_BOOLEANS = {"true": True, "false": False}


@dataclass(frozen=True, slots=True)
class SubnetEnv:
    """What the file holds. ``mtu`` is flannel0's, in bytes; ``ipv6_network`` is set exactly if ``subnet.v6`` is."""

    network: IPv4Network
    subnet: Subnet
    mtu: int
    ip_masq: bool
    ipv6_network: IPv6Network | None = None

    @property
    def gateway(self) -> str:
        """The subnet's first host address with its prefix length: what FLANNEL_SUBNET holds."""
        return f"{self.subnet.v4.network_address + 1}/{self.subnet.v4.prefixlen}"


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
    # The two IPv6 keys come together or not at all.
    required = _REQUIRED + _IPV6 if any(values.get(key) for key in _IPV6) else _REQUIRED
    missing = tuple(key for key in required if not values.get(key))
    if missing:
        raise SubnetEnvError(f"{origin} lacks {', '.join(missing)}", missing)

    def value_of(key: str) -> _Value:
        return _Value(values[key], f"{origin}: {key}")

    dual_stack = len(required) > len(_REQUIRED)
    return SubnetEnv(
        network=value_of("FLANNEL_NETWORK").ipv4_network(),
        subnet=Subnet(
            value_of("FLANNEL_SUBNET").ipv4_network(),
            value_of("FLANNEL_IPV6_SUBNET").ipv6_network() if dual_stack else None,
        ),
        mtu=value_of("FLANNEL_MTU").mtu(),
        ip_masq=value_of("FLANNEL_IPMASQ").boolean(),
        ipv6_network=value_of("FLANNEL_IPV6_NETWORK").ipv6_network() if dual_stack else None,
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
    lines = [
        f"FLANNEL_NETWORK={env.network}",
        f"FLANNEL_SUBNET={env.gateway}",
    ]
    if env.subnet.v6 is not None:
        lines += [
            f"FLANNEL_IPV6_NETWORK={env.ipv6_network}",
            f"FLANNEL_IPV6_SUBNET={env.subnet.v6.network_address + 1}/{env.subnet.v6.prefixlen}",
        ]
    lines += [f"FLANNEL_MTU={env.mtu}", f"FLANNEL_IPMASQ={'true' if env.ip_masq else 'false'}"]
    return "\n".join(lines) + "\n"


def write(path: Path, env: SubnetEnv) -> None:
    """Replace the file (mode 0644) atomically, making its directory (0755) if need be: the runtime may not be root.

    A failed attempt leaves the old one and nothing else. Raises `FlannelError`.
    """
    try:
        write_atomically(path, format_env(env).encode("ascii"), mode=0o644, directory_mode=0o755)
    except OSError as error:
        raise FlannelError(f"cannot write {path}: {error.strerror}") from error
