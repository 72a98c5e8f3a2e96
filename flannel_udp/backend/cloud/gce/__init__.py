"""flannel's gce: a static route of a Google Cloud VPC network to each host's instance.

`identity` asks the metadata service who this host is, `account` Compute Engine for the rest, by its REST API (`rest`),
and `faults` says what it refused. Only `rest` and `faults` import google-auth and requests.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from flannel_udp.backend.cloud.backend import CloudBackend
from flannel_udp.backend.cloud.gce.identity import HOST_VARIABLE, Identity, identify, metadata_host
from flannel_udp.backend.cloud.gce.options import OPTION_KEYS, read_options
from flannel_udp.backend.cloud.provider import Account
from flannel_udp.backend.cloud.refusals import refuse_overlap, refuse_without
from flannel_udp.backend.ends import ends_of
from flannel_udp.errors import ConfigError
from flannel_udp.model import Interface
from flannel_udp.netconf.config import NetworkConfig
from flannel_udp.netconf.reader import ObjectReader


class GceProvider:
    """See `Provider`."""

    type = "gce"
    option_keys = OPTION_KEYS

    def read_options(self, reader: ObjectReader) -> Mapping[str, Any]:
        """See `Backend.read_options`."""
        return read_options(reader)

    def connect(self, config: NetworkConfig, external: Interface) -> Account:
        """See `Provider.connect`."""
        for package in ("google.auth", "requests"):
            refuse_without(package, self.type, "gce")
        options = config.backend.options
        identity = identify(ends_of(external, 4).address)
        _refuse_other_network(options.get("VpcNetwork", identity.network), identity)
        os.environ[HOST_VARIABLE] = metadata_host()  # google-auth would ask it by name; it reads this when imported
        from flannel_udp.backend.cloud.gce.account import GceAccount  # noqa: PLC0415 - it imports google-auth

        account = GceAccount(identity, options.get("Project", identity.network_project))
        try:
            refuse_overlap(config, account.subnets(), identity.network)
        except BaseException:
            account.close()
            raise
        return account


def _refuse_other_network(network: str, identity: Identity) -> None:
    if network != identity.network:
        fault = f"Backend.VpcNetwork is {network}, and the interface with our address is in {identity.network}"
        raise ConfigError([f"{fault}: correct it, or see --iface"])


BACKEND = CloudBackend(GceProvider())
