"""Who this host is, from ECS's instance metadata service, in its hardened mode, which wants a token. Blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Network

from flannel_udp.backend.cloud.metadata import TokenMetadata
from flannel_udp.backend.cloud.provider import CloudError
from flannel_udp.model import Address

URL = "http://100.100.100.200"
_HEADER = "X-aliyun-ecs-metadata-token"
_HINT = "is this an ECS instance in a VPC, and its metadata service on?"
_DATA = "/latest/meta-data/"
_INTERFACES = _DATA + "network/interfaces/macs/"
ROLE = _DATA + "ram/security-credentials/"


@dataclass(frozen=True, slots=True)
class Identity:
    """An instance and the network interface (ENI) that has our address; `interfaces` are all of the instance's."""

    region: str
    instance: str
    interface: str
    primary: bool
    """Whether that is the instance's first interface: a route to the instance leads there, to another one not."""
    interfaces: frozenset[str]
    vswitch: str
    vpc: str
    ranges: tuple[IPv4Network, ...]
    """Of the VPC, as far as the metadata service tells: the first one, and the vSwitch's, which may be in another."""


def conversation() -> TokenMetadata:
    """Begin one with the metadata service. Raises `CloudError`."""
    return TokenMetadata(URL, _HEADER, _HINT)


def identify(address: Address) -> Identity:
    """Ask the metadata service. Raises `CloudError`."""
    asking = conversation()
    instance, first = asking.get(_DATA + "instance-id"), asking.get(_DATA + "mac")
    ours, ids, known = "", set(), list[str]()
    for word in asking.get(_INTERFACES).split():
        mac = word.rstrip("/")
        ids.add(asking.get(f"{_INTERFACES}{mac}/network-interface-id"))
        addresses = re.findall(r"[0-9.]+", asking.find(f"{_INTERFACES}{mac}/private-ipv4s"))  # a list, as JSON has it
        known += addresses
        if str(address) in addresses:
            ours = mac
    if not ours:
        raise CloudError(
            f"no network interface of {instance} has our address {address}: they have {', '.join(known)}: see --iface"
        )
    of = f"{_INTERFACES}{ours}/"
    return Identity(
        region=asking.get(_DATA + "region-id"),
        instance=instance,
        interface=asking.get(of + "network-interface-id"),
        primary=ours == first,
        interfaces=frozenset(ids),
        vswitch=asking.get(of + "vswitch-id"),
        vpc=asking.get(of + "vpc-id"),
        ranges=(_network(asking, of + "vpc-cidr-block"), _network(asking, of + "vswitch-cidr-block")),
    )


def _network(asking: TokenMetadata, path: str) -> IPv4Network:
    text = asking.get(path)
    try:
        return IPv4Network(text, strict=False)
    except ValueError:
        raise CloudError(f"the metadata service at {asking.url} has no IPv4 range at {path}: {text[:40]!r}") from None
