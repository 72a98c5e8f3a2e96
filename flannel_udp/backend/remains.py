"""What earlier runs have left on this host, with another backend or other options: it goes, and nothing else.

Of ours each backend removes its own, known by its marks; routes to peers, which several have, go where what runs now
has none. flanneld leaves devices and routes without a mark. They are
its own only if our entry in the registry said, before we rewrote it, that this host ran that backend:

- vxlan: the devices flannel.VNI and flannel-v6.VNI, with everything on them
- ipip: the device flannel.ipip, likewise
- host-gw, and DirectRouting of these: a route to the subnet of each lease through its holder; one that leads elsewhere
  is an administrator's, and so is one that comes when the agent is ready (with alloc others wait for that to set some)

A family that is off now, or that this host has no address of any more, is as another backend: what is left of it goes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Any

from flannel_udp.backend.leased_routes import remove_left_routes
from flannel_udp.backend.protocol import Backend
from flannel_udp.host.family import family_of
from flannel_udp.host.links import delete_device, device_named
from flannel_udp.host.route_query import stream_routes
from flannel_udp.host.rtnetlink import RTPROT_BOOT, Route, delete_route, open_rtnetlink, parse_route
from flannel_udp.host.vxlan_devices import device_name
from flannel_udp.model import Lease, LeaseAttrs, Prefix, lies_in

VERSIONS = (4, 6)
_VNI_MAX = (1 << 24) - 1  # RFC 7348 section 5
_WITH_ROUTES = ("host-gw", "vxlan", "ipip")  # the last two with DirectRouting


async def find_flannelds_routes(
    running: Backend, overlays: Collection[Prefix], former: LeaseAttrs | None
) -> Collection[Route]:
    """Return the routes into the overlays that may be a flanneld's, if it ran another backend here.

    To be asked before anybody is told that the agent is ready. Raises `FlannelError`.
    """
    if former is None or former.backend_type == running.type or former.backend_type not in _WITH_ROUTES:
        return ()
    return await asyncio.to_thread(_read_routes, overlays)


async def remove_remains(
    running: Backend,
    backends: Mapping[str, Backend],
    former: LeaseAttrs | None,
    left: Collection[Route],
    list_leases: Callable[[], Awaitable[Iterable[Lease]]],
    *,
    versions: Collection[int],
    routes: bool,
    alone: bool,
) -> list[str]:
    """Remove what runs with other backends than the one that is `running` have left; say what it was.

    `versions` are the IP versions that it carries now, of others nothing stays. `routes`: our routes to peers as well,
    whichever backend's, because nobody has any now. `left` are `find_flannelds_routes`. `alone`: no other agent has
    routes, or a tunnel device, of the kernel's on this host; else what bears our marks may be its. `list_leases`
    returns those of the registry, of every backend: hosts that have not gone over yet are no peers, and flanneld's
    routes to them are there all the same. Call it when what runs stands, so that packets travel at every moment. Raises
    `FlannelError`.
    """
    off = [version for version in VERSIONS if version not in versions]
    removed: list[str] = []
    if alone:
        removed += await asyncio.to_thread(remove_left_routes, VERSIONS if routes else off)
        for kind, backend in backends.items():
            removed += await backend.remove_remains(off if kind == running.type else VERSIONS)
    if former is None or former.backend_type == running.type:
        return removed
    match former.backend_type:
        case "vxlan" if alone:
            for version in VERSIONS:
                name = vxlan_device_of(former.data_of(version), version)
                removed += await asyncio.to_thread(_remove_device, name, "vxlan")
        case "ipip" if alone:
            removed += await asyncio.to_thread(_remove_device, "flannel.ipip", "ipip")
    if left:
        removed += await asyncio.to_thread(_remove_routes, left, await list_leases())
    return removed


def vxlan_device_of(data: Any, version: int = 4) -> str:
    """Return the device of a lease's BackendData or BackendV6Data, flannel's default one if that is not sensible."""
    vni = data.get("VNI") if isinstance(data, Mapping) else None
    return device_name(vni if isinstance(vni, int) and 0 < vni <= _VNI_MAX else 1, version)


def _remove_device(name: str, kind: str) -> list[str]:
    """Remove the device of that name if it is of that kind."""
    with open_rtnetlink(f"removing flanneld's {name}") as netlink:
        found = device_named(netlink, name)
        if found is None or found.kind != kind:
            return []
        netlink.do(delete_device(found.index))
        return [f"flanneld's device {name}"]


def _read_routes(overlays: Collection[Prefix]) -> list[Route]:
    with open_rtnetlink("looking for flanneld's routes") as netlink:
        found = (
            parse_route(body)
            for version in VERSIONS
            for body in stream_routes(netlink, version=version, protocol=RTPROT_BOOT)
        )
        return [
            route
            for route in found
            if any(lies_in(route.destination, overlay) for overlay in overlays)
            and route.metric == family_of(route.destination).usual_metric
        ]


def _remove_routes(left: Collection[Route], leases: Iterable[Lease]) -> list[str]:
    gateways = {subnet: lease.attrs.address_of(subnet.version) for lease in leases for subnet in lease.subnet.prefixes}
    theirs = [route for route in left if route.gateway is not None and route.gateway == gateways.get(route.destination)]
    with open_rtnetlink("removing flanneld's routes") as netlink:
        n = netlink.apply([delete_route(route) for route in theirs]).count(None)
    return [f"flanneld's routes: {n}"] if n else []
