"""What the pure tests of the control plane need of the backends."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from flannel_udp.backend.table import BACKENDS
from flannel_udp.model import LeaseAttrs
from flannel_udp.netconf.config import NetworkConfig, parse_network_config
from flannel_udp.netconf.reader import ObjectReader

parse_config = partial(parse_network_config, backends=BACKENDS)
"""Reads a network configuration as the agent does."""


def read_udp_hop(attrs: LeaseAttrs, version: int) -> Any:
    """Read a peer's lease as udp does."""
    return BACKENDS["udp"].read_hop(attrs, None, version)


class EitherFamily:
    """What the control plane sees of a backend that carries both families, whichever do by now."""

    families = frozenset({4, 6})
    option_keys = ()

    def read_options(self, reader: ObjectReader) -> Mapping[str, Any]:  # noqa: ARG002 - the protocol's
        return {}


def parse_families(document: Mapping[str, object]) -> NetworkConfig:
    """Return the configuration of a network whose backend carries both families."""
    return parse_network_config(json.dumps(document), {"udp": EitherFamily()}).config
