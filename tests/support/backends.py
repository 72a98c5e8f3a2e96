"""What the pure tests of the control plane need of the backends."""

from __future__ import annotations

from functools import partial

from flannel_udp.backend.table import BACKENDS
from flannel_udp.netconf.config import parse_network_config

parse_config = partial(parse_network_config, backends=BACKENDS)
"""Reads a network configuration as the agent does."""
read_udp_hop = BACKENDS["udp"].read_hop
