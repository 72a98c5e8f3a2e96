"""What the twin knows of its overlay: one family's prefixes and the hosts that they lead to."""

from __future__ import annotations

from dataclasses import dataclass, field

from flannel_udp.dataplane.encapsulation import UDP, Encapsulation
from flannel_udp.model import Address, Prefix

OWN = "own"


@dataclass
class ReferenceTable:
    """Overlay prefixes of one IP version, each to a peer's public IP or to `OWN`.

    `own_address` is flannel0's, `underlay_address` what our socket is bound to, `macs` are the peers' where the
    encapsulation has any, `mtu` is the tunnel device's.
    """

    routes: dict[Prefix, Address | str] = field(default_factory=dict)
    own_address: Address | None = None
    underlay_address: Address | None = None
    encapsulation: Encapsulation = UDP
    macs: dict[Address, int] = field(default_factory=dict)
    mtu: int = 1280
    version: int = 4

    def lookup(self, address: Address) -> Address | str | None:
        """Return what the longest prefix that covers the address leads to."""
        covering = [prefix for prefix in self.routes if address in prefix]
        return self.routes[max(covering, key=lambda prefix: prefix.prefixlen)] if covering else None

    def is_peer(self, address: Address) -> bool:
        """Tell whether an underlay address is a registered peer's."""
        return address in self.routes.values()
