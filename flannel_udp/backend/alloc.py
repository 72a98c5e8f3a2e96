"""flannel's alloc backend: a lease and subnet.env, and nothing that carries packets: routes are somebody else's.

The smallest backend there is; docs/write-a-backend.md walks through it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from flannel_udp.backend.families import open_families
from flannel_udp.backend.kernel import KernelNetwork
from flannel_udp.backend.protocol import Backend, Context, Network, accept_types
from flannel_udp.model import Address, Interface, LeaseAttrs, RouteAnswer
from flannel_udp.netconf.config import NetworkConfig
from flannel_udp.netconf.reader import ObjectReader


class AllocBackend:
    """See `Backend`."""

    type = "alloc"
    families = frozenset({4, 6})
    option_keys = ()
    hop_type = None

    def read_options(self, reader: ObjectReader) -> Mapping[str, Any]:  # noqa: ARG002 - the protocol's
        """There are none."""
        return {}

    async def check(self, config: NetworkConfig, external: Interface) -> None:
        """Every host can run it."""

    def route_for(self, config: NetworkConfig, address: Address, datapath: str) -> None:
        """It sets no routes."""

    def read_hop(self, attrs: LeaseAttrs, own: LeaseAttrs | None = None, version: int = 4) -> None:  # noqa: ARG002 - the protocol's
        """Take hosts of this backend and those that name none, which flannel's alloc and udp are."""
        accept_types(attrs, self.type, ("", self.type))

    async def open(self, context: Context) -> Network:
        """Return what does nothing but know the peers. Raises `FlannelError`."""

        async def open_one(context: Context, version: int) -> Network:
            return AllocNetwork(context, LeaseAttrs(None), version)

        return await open_families(context, open_one)

    async def remove_remains(self, versions: Collection[int]) -> list[str]:  # noqa: ARG002 - the protocol's
        """It leaves nothing."""
        return []


BACKEND: Backend = AllocBackend()


class AllocNetwork(KernelNetwork):
    """See `Network`: what all of them have, and the answer to who carries packets."""

    def route(self, address: Address) -> RouteAnswer:
        """See `Network.route`."""
        answer = super().route(address)
        if answer.peer is None:
            return answer
        return replace(answer, fault=f"{answer.peer.public_ip} has it; the backend alloc leaves routes to you")
