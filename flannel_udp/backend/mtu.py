"""How large an inner packet may be: what the external interface leaves of its MTU, or less if the network says so."""

from __future__ import annotations

from flannel_udp.errors import ConfigError, FlannelError
from flannel_udp.model import Interface

MTU_MIN_BYTES = 68
"""RFC 791 section 3.1: every link must carry this much."""
MTU_MIN_V6_BYTES = 1_280
"""RFC 8200 section 5: likewise of IPv6; below it the kernel has no IPv6 on a device."""


def inner_mtu(
    external: Interface, overhead_bytes: int, largest_bytes: int, wanted: int | None = None, *, with_ipv6: bool = False
) -> int:
    """Return the overlay's MTU in bytes: Backend.MTU if `wanted`, else what the interface's leaves of a packet.

    A backend puts `overhead_bytes` in front of each inner packet, and carries none beyond `largest_bytes`, whatever
    the interface (lo: 65,536) allows. Raises `ConfigError` if Backend.MTU does not fit into the interface's, or is too
    little for IPv6; `FlannelError` if the interface leaves no room at all.

    `with_ipv6`: never less than IPv6 must have. Where the interface has no room for that, the outer packets of what has
    no more are fragmented (RFC 2473 section 7.1).
    """
    largest = min(external.mtu - overhead_bytes, largest_bytes)
    if with_ipv6:
        largest = max(largest, MTU_MIN_V6_BYTES)
        if wanted is not None and wanted < MTU_MIN_V6_BYTES:
            raise ConfigError(
                [f"Backend.MTU is {wanted}: IPv6 needs {MTU_MIN_V6_BYTES} (RFC 8200 section 5): raise it"]
            )
    if largest < MTU_MIN_BYTES:
        raise FlannelError(f"the MTU of {external.name}, {external.mtu}, leaves no room for a tunnel: raise it")
    if wanted is not None and wanted > largest:
        room = f"the MTU of {external.name}, {external.mtu}, leaves room for {largest}"
        raise ConfigError([f"Backend.MTU is {wanted}: {room}: lower the one or raise the other"])
    return largest if wanted is None else wanted
