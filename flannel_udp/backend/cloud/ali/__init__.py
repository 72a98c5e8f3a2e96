"""flannel's ali-vpc: a custom entry of an Alibaba Cloud VPC's route table to each host's instance.

`identity` asks the metadata service who this host is, `credentials` finds what it may ask with, `account` asks the
VPC's API for the rest, and `faults` says what that refused. Only `identity` does without the SDK.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Network
from typing import Any

from flannel_udp.backend.cloud.ali.identity import identify
from flannel_udp.backend.cloud.ali.options import read_options
from flannel_udp.backend.cloud.backend import CloudBackend
from flannel_udp.backend.cloud.options import OPTION_KEYS
from flannel_udp.backend.cloud.provider import Account
from flannel_udp.backend.cloud.refusals import refuse_other_region, refuse_overlap, refuse_without
from flannel_udp.backend.ends import ends_of
from flannel_udp.model import Interface
from flannel_udp.netconf.config import NetworkConfig
from flannel_udp.netconf.reader import ObjectReader

SERVICES = IPv4Network("100.64.0.0/10")
"""Alibaba's own, in every VPC: name servers, the metadata service, its products. No custom entry may lead it away."""


class AliProvider:
    """See `Provider`."""

    type = "ali-vpc"
    option_keys = OPTION_KEYS

    def read_options(self, reader: ObjectReader) -> Mapping[str, Any]:
        """See `Backend.read_options`."""
        return read_options(reader)

    def connect(self, config: NetworkConfig, external: Interface) -> Account:
        """See `Provider.connect`."""
        refuse_without("alibabacloud_vpc20160428", self.type, "ali")
        identity = identify(ends_of(external, 4).address)
        refuse_other_region(config, identity.region)
        refuse_overlap(config, (*identity.ranges, SERVICES), identity.vpc)
        from flannel_udp.backend.cloud.ali.account import AliAccount  # noqa: PLC0415 - it imports the SDK

        return AliAccount(identity, config.backend.options)


BACKEND = CloudBackend(AliProvider())
