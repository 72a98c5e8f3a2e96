"""flannel's aws-vpc: a route of a VPC's route table to each host's network interface.

`identity` asks the metadata service who this host is, `account` EC2 for the rest, and `faults` says what it refused.
Only `account` imports boto3.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from flannel_udp.backend.cloud.aws.identity import Identity, identify
from flannel_udp.backend.cloud.aws.options import OPTION_KEYS, read_options
from flannel_udp.backend.cloud.backend import CloudBackend
from flannel_udp.backend.cloud.provider import Account, CloudError
from flannel_udp.backend.ends import ends_of
from flannel_udp.errors import ConfigError
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
        importlib.invalidate_caches()  # it may have been installed since we looked last
        if find_spec("boto3") is None:
            raise CloudError(f"Backend.Type is {self.type}, and boto3 is not installed: pip install 'flannel-udp[aws]'")
        options = config.backend.options
        identity = identify(ends_of(external, 4).address)
        _refuse_other_region(options.get("Region", identity.region), identity)
        _refuse_overlap(config, identity)
        from flannel_udp.backend.cloud.aws.account import AwsAccount  # noqa: PLC0415 - it imports boto3

        return AwsAccount(identity, options)


def _refuse_other_region(region: str, identity: Identity) -> None:
    if region != identity.region:
        fault = f"Backend.Region is {region}, and this instance is in {identity.region}"
        raise ConfigError([f"{fault}: a route leads to interfaces of its own region only: leave Region out"])


def _refuse_overlap(config: NetworkConfig, identity: Identity) -> None:
    for cidr in identity.vpc_cidrs:
        if config.overlay.overlaps(cidr):
            fault = f"Network {config.overlay} overlaps {cidr} of {identity.vpc}, which the VPC routes itself"
            raise ConfigError([f"{fault}: choose another Network"])


BACKEND = CloudBackend(AwsProvider())
