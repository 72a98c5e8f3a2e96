"""Who this host is, from EC2's instance metadata service: version 2 (IMDSv2), which wants a token. Blocks."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_network

from flannel_udp.backend.cloud.metadata import TokenMetadata
from flannel_udp.backend.cloud.provider import CloudError
from flannel_udp.model import Address

URL = "http://169.254.169.254"
_URL_VARIABLE = "AWS_EC2_METADATA_SERVICE_ENDPOINT"  # as every SDK of AWS has it
_HEADER = "X-aws-ec2-metadata-token"
_HINT = (
    "is this an EC2 instance, and its metadata service on? In a container without the host's network the answer needs "
    "a hop limit of 2 (http-put-response-hop-limit)"
)
_INTERFACES = "/latest/meta-data/network/interfaces/macs/"


@dataclass(frozen=True, slots=True)
class Identity:
    """An instance and the network interface that has our address; `interfaces` are all of the instance's."""

    region: str
    instance: str
    interface: str
    interfaces: frozenset[str]
    subnet: str
    vpc: str
    vpc_cidrs: tuple[IPv4Network, ...]


def metadata_url() -> str:
    """Return where this host's metadata service is."""
    return os.environ.get(_URL_VARIABLE) or URL


def identify(address: Address) -> Identity:
    """Ask the metadata service. Raises `CloudError`."""
    asking = TokenMetadata(metadata_url(), _HEADER, _HINT)
    try:
        document = json.loads(asking.get("/latest/dynamic/instance-identity/document"))
        region, instance = str(document["region"]), str(document["instanceId"])
    except (ValueError, KeyError, TypeError):
        raise CloudError(f"the metadata service at {asking.url} has no identity document of an instance") from None
    found, ids, known = "", set(), list[str]()
    for mac in asking.get(_INTERFACES).split():
        of = _INTERFACES + mac.rstrip("/") + "/"
        ids.add(asking.get(of + "interface-id"))
        addresses = asking.find(of + "local-ipv4s").split()
        known += addresses
        if str(address) in addresses:
            found = of
    if not found:
        raise CloudError(
            f"no network interface of {instance} has our address {address}: they have {', '.join(known)}: see --iface"
        )
    return Identity(
        region=region,
        instance=instance,
        interface=asking.get(found + "interface-id"),
        interfaces=frozenset(ids),
        subnet=asking.get(found + "subnet-id"),
        vpc=asking.get(found + "vpc-id"),
        vpc_cidrs=tuple(_networks(asking.get(found + "vpc-ipv4-cidr-blocks"))),
    )


def _networks(text: str) -> Iterator[IPv4Network]:
    for word in text.split():
        network = ip_network(word, strict=False)
        if isinstance(network, IPv4Network):
            yield network
