"""Which subnets are somebody's at this moment, for who takes away what was a gone host's."""

from __future__ import annotations

from contextlib import suppress

from flannel_udp.model import Subnet
from flannel_udp.registry import Registry
from flannel_udp.registry.keys import parse_key


async def list_subnets(registry: Registry) -> list[Subnet]:
    """Return the subnet of each key, also where the value makes no sense: it is taken all the same.

    Raises `RegistryError`.
    """
    subnets = []
    for key in (await registry.list()).entries:
        with suppress(ValueError):
            subnets.append(parse_key(key, {}))
    return subnets
