"""What has to pass this host's firewall for a network that runs: asked again and again by `host.firewall.keeper`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import islice

from flannel_udp.backend.protocol import Network
from flannel_udp.host.firewall.passages import (
    BRIDGE,
    DISCOVERY,
    IPIP,
    Passage,
    outer_passages,
    pods_passages,
    udp_opening,
)
from flannel_udp.host.lookup.pods import KnownPods, known_pods
from flannel_udp.model import Interface, Lease, Prefix


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
    others = [*islice(ways.gateways, 1), overlay]
    pod = next((subnet[-2] for subnet in others if subnet.num_addresses > 2 and subnet[-2] not in own), None)
    found: list[Sequence[Passage]] = []
    opening = IPIP if facts.ip_protocol is not None else None if facts.port is None else udp_opening(facts.port)
    if opening is not None:
        found.append(outer_passages(opening, external.name, ends.address, None, version=overlay.version))
    if overlay.version == 6:
        found.append(outer_passages(DISCOVERY, external.name, ends.address, None, version=overlay.version)[:1])
    if pod is not None and own.num_addresses > 2:
        device = (facts.device_v6 if overlay.version == 6 else None) or facts.device or external.name
        ours = await asyncio.to_thread(known_pods, own, ways.device) or KnownPods(BRIDGE)
        found.append(pods_passages(device, overlay, pod, [own[-2], *ours.addresses], ours.bridge))
    return found
