"""What of the packet path no two agents of a host may share, and how it is called."""

from __future__ import annotations

from typing import Protocol

from flannel_udp.model import Address


class Claims(Protocol):
    """Claims of what only one agent may have, kept by somebody else."""

    def hold(self, what: str, todo: str = ...) -> None:
        """Claim this, if it is not claimed by us already. Raises `Claimed`, with `todo` as the advice."""
        ...

    def let_go(self, what: str) -> None:
        """Give up a claim, if it is held."""
        ...


class NoClaims:
    """For who has a network namespace to itself: see `Claims`."""

    def hold(self, what: str, todo: str = "") -> None:
        """Take it for ours."""

    def let_go(self, what: str) -> None:
        """Likewise."""


NO_CLAIMS = NoClaims()
OTHER_PORT = "stop it first, or choose another Backend.Port for the whole network"


def port_claim(address: Address, port: int) -> str:
    """Return what the claim of a UDP port is called."""
    return f"UDP port {port} on {address}"


def device_claim(index: int) -> str:
    """Return what the claim of a tunnel device is called: by its index, since its name may change."""
    return f"the tunnel device with index {index}"
