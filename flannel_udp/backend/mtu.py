"""How large an inner packet may be: what the external interface leaves of its MTU, or less if the network says so."""

from __future__ import annotations

from flannel_udp.errors import ConfigError, FlannelError
from flannel_udp.model import Interface

MTU_MIN_BYTES = 68
"""RFC 791 section 3.1: every link must carry this much."""


def inner_mtu(external: Interface, overhead_bytes: int, largest_bytes: int, wanted: int | None = None) -> int:
    """Return the overlay's MTU in bytes: Backend.MTU if `wanted`, else what the interface's leaves of a packet.

    A backend puts `overhead_bytes` in front of each inner packet, and carries none beyond `largest_bytes`, whatever
    the interface (lo: 65,536) allows. Raises `ConfigError` if Backend.MTU does not fit into the interface's,
    `FlannelError` if the interface leaves no room at all.
    """
    largest = min(external.mtu - overhead_bytes, largest_bytes)
    if largest < MTU_MIN_BYTES:
        raise FlannelError(f"the MTU of {external.name}, {external.mtu}, leaves no room for a tunnel: raise it")
    if wanted is not None and wanted > largest:
        room = f"the MTU of {external.name}, {external.mtu}, leaves room for {largest}"
        raise ConfigError([f"Backend.MTU is {wanted}: {room}: lower the one or raise the other"])
    return largest if wanted is None else wanted
