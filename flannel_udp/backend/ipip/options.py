"""What the backend ipip is called, its options in the network configuration, and the MTU that its header leaves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flannel_udp.backend.mtu import inner_mtu
from flannel_udp.model import Interface
from flannel_udp.netconf.reader import ObjectReader

TYPE = "ipip"
"""The backend's name, in the network configuration and in leases."""
OPTION_KEYS = ("DirectRouting",)
DEVICE = "flannel.ipip"
OVERHEAD_BYTES = 20
"""The outer IPv4 header: there are no options in it."""
MTU_MAX_BYTES = 65_535 - OVERHEAD_BYTES
"""Whatever the interface allows (lo: 65,536), the outer packet is no longer (RFC 791 section 3.1)."""


def read_ipip_options(reader: ObjectReader) -> Mapping[str, Any]:
    """Read them."""
    return {"DirectRouting": reader.boolean("DirectRouting", default=False)}


def ipip_mtu(external: Interface) -> int:
    """Return the overlay's MTU in bytes. Raises `FlannelError` where the interface leaves no room."""
    return inner_mtu(external, OVERHEAD_BYTES, MTU_MAX_BYTES)
