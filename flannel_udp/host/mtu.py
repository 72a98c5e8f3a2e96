"""How large an inner packet may be: what the external interface leaves of its MTU, or less if the network says so."""

from __future__ import annotations

from flannel_udp.errors import ConfigError, FlannelError
from flannel_udp.model import Interface
from flannel_udp.netconf.config import MTU_MAX_BYTES, MTU_MIN_BYTES

OUTER_HEADER_BYTES = 28  # IPv4 20 + UDP 8


def tunnel_mtu(external: Interface, wanted: int | None = None) -> int:
    """Return flannel0's MTU in bytes: Backend.MTU if `wanted`, else what the interface's leaves of a packet.

    Raises ConfigError if the one does not fit into the other, FlannelError if the interface leaves no room at all.
    """
    # A UDP datagram has its bound too, whatever the interface (lo: 65,536) allows.
    largest = min(external.mtu - OUTER_HEADER_BYTES, MTU_MAX_BYTES)
    if largest < MTU_MIN_BYTES:
        raise FlannelError(f"the MTU of {external.name}, {external.mtu}, leaves no room for a tunnel: raise it")
    if wanted is not None and wanted > largest:
        room = f"the MTU of {external.name}, {external.mtu}, leaves room for {largest}"
        raise ConfigError([f"Backend.MTU is {wanted}: {room}: lower the one or raise the other"])
    return largest if wanted is None else wanted
