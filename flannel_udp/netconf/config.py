"""The network configuration that all hosts share: parse, validate, normalise. Pure: text in, values out.

The rules are flannel's (JSON keys without regard to case, the last of two equal keys wins, ``null`` means absent), with
every fault reported at once, each on its own line, instead of only the first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from flannel_udp.errors import did_you_mean
from flannel_udp.model import Address, Prefix, Subnet, prefix_of
from flannel_udp.netconf.addresses import LINK_LOCAL, why_no_overlay
from flannel_udp.netconf.reader import SECRET_KEYS, JsonObject, ObjectReader, decode_object, shown

DEFAULT_TYPE = "udp"
"""The backend of a configuration that names none."""

_KEYS = (
    "EnableIPv4",
    "EnableIPv6",
    "EnableNFTables",
    "Network",
    "SubnetLen",
    "SubnetMin",
    "SubnetMax",
    "IPv6Network",
    "IPv6SubnetLen",
    "IPv6SubnetMin",
    "IPv6SubnetMax",
    "Backend",
)

Net = TypeVar("Net", IPv4Network, IPv6Network)


@dataclass(frozen=True, slots=True)
class SubnetRange(Generic[Net]):
    """The overlay network of one address family and the subnets that hosts may lease.

    ``first`` and ``last`` (both leasable) are SubnetMin and SubnetMax as networks of SubnetLen. Nothing is enumerated:
    a /8 of /30s has four million subnets.
    """

    network: Net
    first: Net
    last: Net

    @property
    def subnet_len(self) -> int:
        """SubnetLen, the prefix length of every lease in bits."""
        return self.first.prefixlen

    @property
    def step(self) -> int:
        """Addresses in one subnet, hence the distance between neighbouring subnets."""
        return self.first.num_addresses

    @property
    def count(self) -> int:
        """How many subnets there are to lease."""
        return (int(self.last.network_address) - int(self.first.network_address)) // self.step + 1

    def fits(self, subnet: Prefix) -> bool:
        """Tell whether `subnet` has the configured length and lies within [SubnetMin, SubnetMax]."""
        low, high = int(self.first.network_address), int(self.last.network_address)
        alike = (subnet.version, subnet.prefixlen) == (self.network.version, self.subnet_len)
        return alike and low <= int(subnet.network_address) <= high

    def meets(self, network: Prefix) -> bool:
        """Tell whether `network` and a subnet that may be leased have an address in common."""
        low, high = int(self.first.network_address), int(self.last.broadcast_address)
        first, last = int(network.network_address), int(network.broadcast_address)
        return network.version == self.network.version and first <= high and low <= last


AnyRange: TypeAlias = "SubnetRange[IPv4Network] | SubnetRange[IPv6Network]"


@dataclass(frozen=True, slots=True)
class BackendConfig:
    """How packets travel: ``type`` in lower case, and the backend's own keys with all defaults filled in."""

    type: str
    options: Mapping[str, Any]


class OptionsReader(Protocol):
    """What a backend knows of its part of the configuration, without anything of it running."""

    @property
    def families(self) -> Set[int]:
        """The IP versions that it carries: 4, 6."""
        ...

    @property
    def option_keys(self) -> tuple[str, ...]:
        """Its own keys of the object Backend."""
        ...

    def read_options(self, reader: ObjectReader) -> Mapping[str, Any]:
        """Return its own keys, defaults filled in, ready to be written as JSON; faults go to `reader`."""
        ...


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """A valid configuration with all defaults filled in; a family that is switched off is ``None``."""

    v4: SubnetRange[IPv4Network] | None
    v6: SubnetRange[IPv6Network] | None
    enable_nftables: bool
    backend: BackendConfig

    def of(self, version: int) -> AnyRange | None:
        """Return what there is of one family, by IP version; ``None``: it is off."""
        return self.v4 if version == 4 else self.v6

    @property
    def versions(self) -> tuple[int, ...]:
        """The IP versions that are on: (4,), (6,) or (4, 6). A host is found by its address of the first one."""
        return tuple(version for version in (4, 6) if self.of(version) is not None)

    @property
    def overlays(self) -> tuple[Prefix, ...]:
        """The overlay networks of the families that are on, IPv4 first."""
        return tuple(family.network for family in (self.v4, self.v6) if family is not None)

    @property
    def overlay(self) -> IPv4Network:
        """The IPv4 overlay network, for what carries IPv4 only. Raises `ValueError` if IPv4 is off."""
        if self.v4 is None:
            raise ValueError("a configuration without IPv4 has no IPv4 network")
        return self.v4.network

    def part_of(self, subnet: Subnet) -> Subnet:
        """Return what of a subnet counts here: the parts of the families that are on."""
        return Subnet(None if self.v4 is None else subnet.v4, None if self.v6 is None else subnet.v6)

    def fits(self, subnet: Subnet, versions: Collection[int] = (4, 6)) -> bool:
        """Tell whether a host may hold `subnet`, that has addresses of these IP versions.

        A family that is on, and of which the host has an address, must be there; what is there must fit; one that is
        off must be absent.
        """
        for version in (4, 6):
            part, subnets = subnet.of(version), self.of(version)
            if part is None:
                if subnets is not None and version in versions:
                    return False
            elif subnets is None or not subnets.fits(part):
                return False
        return True

    def may_lease(self, address: Address) -> bool:
        """Tell whether a host may get a subnet that has this address."""
        subnets = self.of(address.version)
        return subnets is not None and subnets.meets(prefix_of(address, address.max_prefixlen))

    def to_document(self) -> dict[str, Any]:
        """Return the normalised configuration, ready to be written as JSON; parsing it again gives an equal value."""
        document: dict[str, Any] = {
            "EnableIPv4": self.v4 is not None,
            "EnableIPv6": self.v6 is not None,
            "EnableNFTables": self.enable_nftables,
        }
        for prefix, family in (("", self.v4), ("IPv6", self.v6)):
            if family is not None:
                document[f"{prefix}Network"] = str(family.network)
                document[f"{prefix}SubnetLen"] = family.subnet_len
                document[f"{prefix}SubnetMin"] = str(family.first.network_address)
                document[f"{prefix}SubnetMax"] = str(family.last.network_address)
        document["Backend"] = {"Type": self.backend.type, **self.backend.options}
        return document

    def to_json(self, *, secrets: bool = True) -> str:
        """Return that as readable text; without `secrets` their keys are left out."""
        document = self.to_document()
        if not secrets:
            document["Backend"] = {key: value for key, value in document["Backend"].items() if key not in SECRET_KEYS}
        return json.dumps(document, indent=2)


@dataclass(frozen=True, slots=True)
class ParsedConfig:
    """What was read: the value, and one line for each thing that flannel would silently pass over."""

    config: NetworkConfig
    warnings: tuple[str, ...]


def parse_network_config(raw: bytes | str, backends: Mapping[str, OptionsReader]) -> ParsedConfig:
    """Parse and validate the network configuration, its backend being one of `backends`, by type.

    Raises `ConfigError` with one line a fault.
    """
    reader = ObjectReader(decode_object(raw), _KEYS)
    on = {"": reader.boolean("EnableIPv4", default=True), "IPv6": reader.boolean("EnableIPv6", default=False)}
    nftables = reader.boolean("EnableNFTables", default=False)
    if not any(on.values()):
        reader.fault("EnableIPv4", "EnableIPv4 and EnableIPv6 are both false: one must be true")
    v4 = _read_range(reader, _IPV4, on[""])
    v6 = _read_range(reader, _IPV6, on["IPv6"])
    backend = _read_backend(reader, backends, {version for version, key in ((4, ""), (6, "IPv6")) if on[key]})
    reader.raise_faults()
    return ParsedConfig(NetworkConfig(v4, v6, nftables, backend), tuple(reader.warnings))


# --- Address families ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Family(Generic[Net]):
    """Where the two address families differ."""

    prefix: str
    switch: str
    example: str
    net: type[Net]
    address: type[IPv4Address] | type[IPv6Address]
    longest_subnet: int
    usual_subnet: int


_IPV4 = _Family("", "EnableIPv4", "10.1.0.0/16", IPv4Network, IPv4Address, 30, 24)
_IPV6 = _Family("IPv6", "EnableIPv6", "fd00:1::/48", IPv6Network, IPv6Address, 126, 64)


def _read_range(reader: ObjectReader, family: _Family[Net], enabled: bool) -> SubnetRange[Net] | None:
    """Read one family's four keys. As in flannel, a family that is off has its types checked but not its bounds."""
    keys = tuple(family.prefix + name for name in ("Network", "SubnetLen", "SubnetMin", "SubnetMax"))
    network_key, len_key, min_key, max_key = keys
    network = _read_network(reader, network_key, family)
    subnet_len = reader.integer(len_key)
    low = _read_address(reader, min_key, family)
    high = _read_address(reader, max_key, family)
    if not enabled:
        unused = ", ".join(key for key in keys if reader.value(key) is not None)
        if unused:
            reader.warnings.append(f"{unused} without effect: {family.switch} is false")
        return None
    if reader.value(network_key) is None:
        reader.fault(network_key, f'{network_key} is missing: expected a network such as "{family.example}"')
    length = _checked_len(reader, family, network, subnet_len)
    if network is None or length is None:
        return None
    # The first subnet is left out by default: its first address is the network's own address.
    first = _checked_bound(reader, min_key, network, length, low, default=1)
    last = _checked_bound(reader, max_key, network, length, high, default=(1 << (length - network.prefixlen)) - 1)
    if first is None or last is None:
        return None
    if int(first.network_address) > int(last.network_address):
        key = max_key if reader.value(min_key) is None else min_key
        reader.fault(key, f"{min_key} ({first.network_address}) is above {max_key} ({last.network_address})")
    return SubnetRange(network, first, last)


def _read_network(reader: ObjectReader, key: str, family: _Family[Net]) -> Net | None:
    """Read a CIDR; host bits are cleared as flannel does. /0 is no overlay: flannel takes it for an absent value."""
    text = reader.string(key)
    if text is None:
        return None
    try:
        # ipaddress alone would also take a netmask, a bare address and a scope.
        if not re.fullmatch(r"[0-9A-Fa-f.:]+/[0-9]{1,3}", text):
            raise ValueError(text)
        network = family.net(text, strict=False)
    except ValueError:
        reader.wrong(key, f'a network such as "{family.example}"')
        return None
    if network.prefixlen == 0:
        reader.wrong(key, "a part of the address space, not all of it")
        return None
    unusable = why_no_overlay(network)
    if unusable is not None:
        reader.wrong(key, f"a network whose addresses hosts can have: {unusable}")
        return None
    if network.overlaps(LINK_LOCAL):
        reader.warnings.append(f"{key} {network} overlaps {LINK_LOCAL}, addresses that hosts give themselves")
    if network.network_address != family.address(text.partition("/")[0]):
        reader.warnings.append(f"{key} is {shown(text)}: taken as {network}")
    return network


def _read_address(reader: ObjectReader, key: str, family: _Family[Net]) -> int | None:
    """Read an address as an integer; the all-zero address stands for the default, as in flannel."""
    text = reader.string(key)
    if text is None:
        return None
    try:
        if "%" in text:  # an IPv6 scope means nothing in a range
            raise ValueError(text)
        return int(family.address(text)) or None
    except ValueError:
        reader.wrong(key, f'an address such as "{family.example.split("/")[0]}"')
        return None


def _checked_len(reader: ObjectReader, family: _Family[Net], network: Net | None, given: int | None) -> int | None:
    """Return the subnets' prefix length, the default for an absent or zero one; ``None`` after a fault."""
    key = f"{family.prefix}SubnetLen"
    longest_network = family.longest_subnet - 2
    good = True
    if network is not None and network.prefixlen > longest_network:
        reader.wrong(f"{family.prefix}Network", f"/{longest_network} or wider, so that four subnets fit")
        good = False
    if given is not None and not 0 <= given <= family.longest_subnet:
        reader.wrong(key, f"at most {family.longest_subnet}")
        good = False
    if network is None or not good:
        return None
    shortest = network.prefixlen + 2
    if not given:
        return max(family.usual_subnet, shortest)
    if given < shortest:
        reader.wrong(key, f"at least {shortest}, so that four subnets fit into {network}")
        return None
    return given


def _checked_bound(
    reader: ObjectReader, key: str, network: Net, length: int, given: int | None, *, default: int
) -> Net | None:
    """Return the subnet that starts at `given`, or number `default` of the network; ``None`` after a fault."""
    size = 1 << (network.max_prefixlen - length)
    start = int(network.network_address)
    if given is None:
        return type(network)((start + default * size, length))
    if not start <= given < start + network.num_addresses:
        reader.wrong(key, f"an address inside {network}")
        return None
    if given % size:
        reader.wrong(key, f"the first address of a /{length} subnet")
        return None
    return type(network)((given, length))


# --- Backend ------------------------------------------------------------------------------------------------------


def _read_backend(reader: ObjectReader, backends: Mapping[str, OptionsReader], wanted: Set[int]) -> BackendConfig:
    """Read the backend, an absent, null or empty one as the default; `wanted` are the IP versions that are on."""
    document = reader.object("Backend") or JsonObject([])
    kind = (ObjectReader(document, ("Type",)).string("Type") or DEFAULT_TYPE).lower()
    if kind not in backends:
        known, hint = ", ".join(backends), did_you_mean(kind, backends)
        reader.fault("Backend", f"Backend.Type is {shown(kind)}: this agent has no such backend, it has {known}{hint}")
        return BackendConfig(kind, {})
    backend = backends[kind]
    inner = ObjectReader(document, ("Type", *backend.option_keys), "Backend.")
    inner.string("Type")  # once more, for its fault
    options = backend.read_options(inner)
    reader.adopt("Backend", inner)
    if 6 in wanted and 6 not in backend.families:
        reader.fault("EnableIPv6", f"EnableIPv6 is true: the backend {kind} carries IPv4 only")
        if wanted == {6}:
            reader.fault("EnableIPv4", f"EnableIPv4 is false: the backend {kind} carries nothing else")
    return BackendConfig(kind, options)
