"""What other backends have left on this host, where the configuration names another one now: it goes, and nothing else.

Of ours each backend removes its own, known by its marks. flanneld leaves devices and routes without a mark. They are
its own only if our entry in the registry said, before we rewrote it, that this host ran that backend:

- vxlan: the device flannel.VNI, with everything on it
- ipip: the device flannel.ipip, likewise
- host-gw: a route to the subnet of each lease through its holder; one that leads elsewhere is an administrator's
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from ipaddress import IPv4Network
from typing import Any

from flannel_udp.backend.protocol import Backend
from flannel_udp.host.netlink import RTPROT_BOOT, open_netlink
from flannel_udp.host.rtnetlink import delete_route, open_rtnetlink
from flannel_udp.model import Lease, LeaseAttrs

_VNI_MAX = (1 << 24) - 1  # RFC 7348 section 5


async def remove_remains(
    running: Backend,
    backends: Mapping[str, Backend],
    overlay: IPv4Network,
    former: LeaseAttrs | None,
    list_leases: Callable[[], Awaitable[Iterable[Lease]]],
) -> list[str]:
    """Remove what runs with other backends than the one that is `running` have left; say what it was.

    `list_leases` returns those of the registry, of every backend: hosts that have not gone over yet are no peers, and
    flanneld's routes to them are there all the same. Call it when what runs stands, so that packets travel at every
    moment. Raises `FlannelError`.
    """
    removed = []
    for kind, backend in backends.items():
        if kind != running.type:
            removed += await backend.remove_remains(overlay)
    if former is None or former.backend_type == running.type:
        return removed
    match former.backend_type:
        case "vxlan":
            removed += await asyncio.to_thread(_remove_device, _vxlan_device(former.backend_data), "vxlan")
        case "ipip":
            removed += await asyncio.to_thread(_remove_device, "flannel.ipip", "ipip")
        case "host-gw":
            removed += await asyncio.to_thread(_remove_routes, overlay, await list_leases())
    return removed


def _vxlan_device(data: Any) -> str:
    """Return the device of a lease's BackendData, flannel's default one if that says nothing sensible."""
    vni = data.get("VNI") if isinstance(data, Mapping) else None
    return f"flannel.{vni if isinstance(vni, int) and 0 < vni <= _VNI_MAX else 1}"


def _remove_device(name: str, kind: str) -> list[str]:
    """Remove the device of that name if it is of that kind."""
    with open_netlink(f"removing flanneld's {name}") as ip:
        for link in ip.get_links():
            info = link.get_attr("IFLA_LINKINFO")
            if link.get_attr("IFLA_IFNAME") == name and info is not None and info.get_attr("IFLA_INFO_KIND") == kind:
                ip.link("del", index=link["index"])
                return [f"flanneld's device {name}"]
    return []


def _remove_routes(overlay: IPv4Network, leases: Iterable[Lease]) -> list[str]:
    gateways = {lease.subnet.v4: lease.attrs.public_ip for lease in leases}
    with open_rtnetlink("removing flanneld's routes") as netlink:
        theirs = [
            route
            for route in netlink.routes_of(RTPROT_BOOT)
            if route.destination.subnet_of(overlay)
            and not route.metric
            and route.gateway is not None
            and gateways.get(route.destination) == route.gateway
        ]
        netlink.apply([delete_route(route) for route in theirs])
    return [f"flanneld's routes: {len(theirs)}"] if theirs else []
