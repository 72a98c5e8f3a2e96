"""What has to pass this host's firewall for a network that runs: asked again and again by `host.firewall.keeper`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import chain

from flannel_udp.backend.protocol import Network
from flannel_udp.host.firewall.passages import (
    BRIDGE,
    DISCOVERY,
    IPIP,
    ON_LINK,
    Passage,
    bridge_passages,
    outer_passages,
    pods_passages,
    udp_opening,
)
from flannel_udp.host.lookup.pods import KnownPods, known_pods
from flannel_udp.model import Address, Interface, Lease, Prefix


async def passages_of(
    network: Network, overlay: Prefix, external: Interface, lease: Lease | None
) -> list[Sequence[Passage]]:
    """Return the packets of the overlay's family by question.

    None while there is no lease, and where packets are nobody's business here.
    """
    ways = await asyncio.to_thread(network.ways, overlay.version)
    own = None if lease is None else lease.subnet.of(overlay.version)
    ends = external.of(overlay.version)
    if own is None or ends is None or ways is None:
        return []
    facts = network.facts()
    found: list[Sequence[Passage]] = []
    opening = IPIP if facts.ip_protocol is not None else None if facts.port is None else udp_opening(facts.port)
    outer = partial(outer_passages, version=overlay.version, overlay=overlay)
    if opening is not None:
        found.append(outer(opening, external.name, ends.address, None))
    if overlay.version == 6:
        found.append(outer(DISCOVERY, external.name, ends.address, None)[:1])
    tunnelled = _some_pod(chain((at for at in ways.gateways if at not in ways.direct), [overlay]), own)
    if tunnelled is not None and own.num_addresses > 2:
        device = (facts.device_v6 if overlay.version == 6 else None) or facts.device or external.name
        ours = await asyncio.to_thread(known_pods, own, ways.device) or KnownPods(BRIDGE)
        pods = [own[-2], *ours.addresses]
        inner = pods_passages(device, overlay, tunnelled, pods, ours.bridge)
        direct = _some_pod(ways.direct, own)
        if direct is not None:
            inner += pods_passages(external.name, overlay, direct, pods, ours.bridge, hosts=ON_LINK)
        if ours.is_bridge:
            inner += bridge_passages(ours.bridge, overlay, tunnelled, pods[0])
        found.append(inner)
    return found


def _some_pod(subnets: Iterable[Prefix], own: Prefix) -> Address | None:
    """Return a pod's address in the first of these subnets that has room for one outside ours."""
    return next((subnet[-2] for subnet in subnets if subnet.num_addresses > 2 and subnet[-2] not in own), None)
