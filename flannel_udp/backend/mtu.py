"""How large an inner packet may be: what the external interface leaves of its MTU, or less if the network says so."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from flannel_udp.errors import ConfigError, FlannelError
from flannel_udp.model import Interface

MTU_MIN_BYTES = 68
"""RFC 791 section 3.1: every link must carry this much."""
MTU_MIN_V6_BYTES = 1_280
"""RFC 8200 section 5: likewise of IPv6; below it the kernel has no IPv6 on a device."""


@dataclass(frozen=True, slots=True)
class MtuOption:
    """What Backend.MTU means to a backend that has it."""

    overhead_bytes: Mapping[int, int]
    """What stands in front of an inner packet, by IP version."""
    versions: Collection[int]
    """Those that are on. Pods have one MTU for all: what the longest headers leave."""
    of_underlay: bool
    """It is the underlay's MTU, which has room for those headers, and not the overlay's."""

    def fitting(self, n_bytes: int, version: int, *, direct: bool) -> int | None:
        """Return it for a path that carries inner packets of `n_bytes` to a peer of that IP version, and no larger.

        Packets of the other version fit the same path then. `direct`: they have no headers in front there.
        ``None``: IPv6 is on, and needs more than that.
        """
        longest = max(self.overhead_bytes[each] for each in self.versions)
        mtu = n_bytes if direct else n_bytes + self.overhead_bytes[version] - longest
        if 6 in self.versions and mtu < MTU_MIN_V6_BYTES:
            return None
        return mtu + longest if self.of_underlay else mtu


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
