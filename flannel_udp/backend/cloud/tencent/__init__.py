"""flannel's tencent-vpc: a route of a VPC's route table to each host's private address.

`identity` asks the metadata service who this host is, `credentials` with which keys it asks, `account` the VPC's API
for the rest, patiently by `retrying`, and `faults` says what it refused. `account`, `retrying` and `faults` import
Tencent's SDK.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from flannel_udp.backend.cloud.backend import CloudBackend
from flannel_udp.backend.cloud.options import OPTION_KEYS
from flannel_udp.backend.cloud.provider import Account
from flannel_udp.backend.cloud.refusals import refuse_other_region, refuse_overlap, refuse_without
from flannel_udp.backend.cloud.tencent.credentials import find_credentials
from flannel_udp.backend.cloud.tencent.identity import identify, metadata_service
from flannel_udp.backend.cloud.tencent.options import read_options
from flannel_udp.backend.ends import ends_of
from flannel_udp.model import Interface
from flannel_udp.netconf.config import NetworkConfig
from flannel_udp.netconf.reader import ObjectReader


class TencentProvider:
    """See `Provider`."""

    type = "tencent-vpc"
    option_keys = OPTION_KEYS

    def read_options(self, reader: ObjectReader) -> Mapping[str, Any]:
        """See `Backend.read_options`."""
        return read_options(reader)

    def connect(self, config: NetworkConfig, external: Interface) -> Account:
        """See `Provider.connect`."""
        for package in ("tencentcloud", "tencentcloud.vpc"):  # its services are packages of their own
            refuse_without(package, self.type, "tencent")
        metadata, options = metadata_service(), config.backend.options
        identity = identify(metadata, ends_of(external, 4).address)
        refuse_other_region(config, identity.region)
        from flannel_udp.backend.cloud.tencent.account import TencentAccount  # noqa: PLC0415 - it imports the SDK

        account = TencentAccount(identity, find_credentials(options, metadata), options.get("RouteTableID", ()))
        with ExitStack() as stack:
            stack.callback(account.close)
            refuse_overlap(config, account.vpc_cidrs(), identity.vpc)
            stack.pop_all()
        return account


BACKEND = CloudBackend(TencentProvider())
