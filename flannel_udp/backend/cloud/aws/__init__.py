"""flannel's aws-vpc: a route of a VPC's route table to each host's network interface.

`identity` asks the metadata service who this host is, `account` EC2 for the rest, and `faults` says what it refused.
Only `account` imports boto3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flannel_udp.backend.cloud.aws.identity import identify
from flannel_udp.backend.cloud.aws.options import read_options
from flannel_udp.backend.cloud.backend import CloudBackend
from flannel_udp.backend.cloud.options import OPTION_KEYS
from flannel_udp.backend.cloud.provider import Account
from flannel_udp.backend.cloud.refusals import refuse_other_region, refuse_overlap, refuse_without
from flannel_udp.backend.ends import ends_of
from flannel_udp.model import Interface
from flannel_udp.netconf.config import NetworkConfig
from flannel_udp.netconf.reader import ObjectReader


class AwsProvider:
    """See `Provider`."""

    type = "aws-vpc"
    option_keys = OPTION_KEYS

    def read_options(self, reader: ObjectReader) -> Mapping[str, Any]:
        """See `Backend.read_options`."""
        return read_options(reader)

    def connect(self, config: NetworkConfig, external: Interface) -> Account:
        """See `Provider.connect`."""
        refuse_without("boto3", self.type, "aws")
        identity = identify(ends_of(external, 4).address)
        refuse_other_region(config, identity.region)
        refuse_overlap(config, identity.vpc_cidrs, identity.vpc)
        from flannel_udp.backend.cloud.aws.account import AwsAccount  # noqa: PLC0415 - it imports boto3

        return AwsAccount(identity, config.backend.options)


BACKEND = CloudBackend(AwsProvider())
