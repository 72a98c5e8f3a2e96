"""flannel's alloc backend: a lease and subnet.env, and nothing that carries packets: routes are somebody else's.

The smallest backend there is; docs/write-a-backend.md walks through it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from flannel_udp.backend.kernel import KernelNetwork
from flannel_udp.backend.protocol import Backend, Context, accept_types
from flannel_udp.model import Interface, LeaseAttrs, RouteAnswer
from flannel_udp.netconf.config import NetworkConfig
from flannel_udp.netconf.reader import ObjectReader


class AllocBackend:
    """See `Backend`."""

    type = "alloc"
    families = frozenset({4})
    option_keys = ()

    def read_options(self, reader: ObjectReader) -> Mapping[str, Any]:  # noqa: ARG002 - the protocol's
        """There are none."""
        return {}

    def check(self, config: NetworkConfig, external: Interface) -> None:
        """Every host can run it."""

    def read_hop(self, attrs: LeaseAttrs) -> None:
        """Take hosts of this backend and those that name none, which flannel's alloc and udp are."""
        accept_types(attrs, self.type, ("", self.type))

    async def open(self, context: Context) -> AllocNetwork:
        """Return what does nothing but know the peers. Raises `FlannelError`."""
        return AllocNetwork(context, LeaseAttrs(context.external.public_ip))

    async def remove_remains(self, overlay: IPv4Network) -> list[str]:  # noqa: ARG002 - the protocol's
        """It leaves nothing."""
        return []


BACKEND: Backend = AllocBackend()


class AllocNetwork(KernelNetwork):
    """See `Network`: what all of them have, and the answer to who carries packets."""

    def route(self, address: IPv4Address) -> RouteAnswer:
        """See `Network.route`."""
        answer = super().route(address)
        if answer.peer is None:
            return answer
        return replace(answer, fault=f"{answer.peer.public_ip} has it; the backend alloc leaves routes to you")
