"""Who this host is, from the instance metadata service of Tencent Cloud. Blocks."""

from __future__ import annotations

import os
from dataclasses import dataclass
from ipaddress import IPv4Address

from flannel_udp.backend.cloud.metadata import Metadata
from flannel_udp.backend.cloud.provider import CloudError
from flannel_udp.model import Address

URL = "http://169.254.0.23"
"""What metadata.tencentyun.com resolves to: no DNS is needed for it."""
_URL_VARIABLE = "FLANNEL_UDP_TENCENT_METADATA"
_ROOT = "/latest/meta-data/"
_INTERFACES = "network/interfaces/macs/"


@dataclass(frozen=True, slots=True)
class Identity:
    """An instance, and the subnet and VPC of the network interface that has our address.

    Its interfaces have no names of their own in a route table: their addresses are what a route leads to.
    """

    region: str
    instance: str
    address: IPv4Address
    addresses: frozenset[IPv4Address]
    subnet: str
    vpc: str


def metadata_service() -> Metadata:
    """Return the one that this host asks."""
    return Metadata(os.environ.get(_URL_VARIABLE) or URL)


def identify(metadata: Metadata, address: Address) -> Identity:
    """Ask the metadata service. Raises `CloudError`."""
    try:
        region, instance = read(metadata, "placement/region"), read(metadata, "instance-id")
    except CloudError as error:
        raise CloudError(f"{error}: is this an instance of Tencent Cloud, and may it reach that address?") from None
    addresses: dict[IPv4Address, str] = {}  # and where the metadata has its interface
    for mac in read(metadata, _INTERFACES).split():
        of = f"{_INTERFACES}{mac.rstrip('/')}/"
        listed = read(metadata, f"{of}local-ipv4s/")
        addresses |= {IPv4Address(each.rstrip("/")): of for each in listed.split()}
    if not isinstance(address, IPv4Address) or address not in addresses:
        known = ", ".join(map(str, sorted(addresses)))
        raise CloudError(
            f"no network interface of {instance} has our address {address}: they have {known}: see --iface"
        )
    of = addresses[address]
    return Identity(
        region=region,
        instance=instance,
        address=address,
        addresses=frozenset(addresses),
        subnet=read(metadata, f"{of}subnet-id"),
        vpc=read(metadata, f"{of}vpc-id"),
    )


def read(metadata: Metadata, path: str) -> str:
    """Return what the metadata service has at `path`. Raises `CloudError`."""
    status, text = metadata.ask(_ROOT + path, {})
    if status != 200:
        raise CloudError(f"the metadata service at {metadata.url} answers {_ROOT}{path} with status {status}")
    return text.strip()
