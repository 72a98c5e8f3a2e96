"""The blackhole route for our own subnet (`--ip-blackhole-route`): what no pod takes is dropped, not routed elsewhere.

Without it a packet for an address of ours that no pod has follows the overlay's route into the tunnel, or the default
route while there is no tunnel. The route has the worst metric there is, so that the bridge's own route for the same
subnet, where there is one, wins; flanneld gives it none, and then the blackhole would hide a bridge that comes later.
Like everything in `netlink`, this blocks for about a millisecond.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterator

from flannel_udp.errors import FlannelError
from flannel_udp.host.family import family_of
from flannel_udp.host.route_query import stream_routes
from flannel_udp.host.rtnetlink import (
    RTPROT_BOOT,
    Route,
    Rtnetlink,
    add_route,
    delete_route,
    open_rtnetlink,
    parse_route,
)
from flannel_udp.model import Prefix, lies_in

_RTN_BLACKHOLE = 6  # linux/rtnetlink.h
WORST_METRIC = 2**32 - 1
"""Also how the routes of an earlier run are known as ours."""


def keep_blackholes(networks: Collection[Prefix], subnets: Collection[Prefix]) -> None:
    """Leave `subnets` as the only ones of these overlay networks that such routes of ours are for.

    `networks` are those that this host takes part in, or did in an earlier run: other overlays' routes stay. Raises
    `FlannelError`.
    """
    with open_rtnetlink("setting the blackhole route") as netlink:
        former = [
            route
            for version in {network.version for network in networks}
            for route in _ours(netlink, version)
            if route.destination not in subnets and any(lies_in(route.destination, network) for network in networks)
        ]
        netlink.apply([delete_route(route) for route in former])
        for subnet in subnets:
            _restore(netlink, subnet)


def restore_blackhole(subnet: Prefix) -> bool:
    """Put the route for `subnet` back and tell whether it was gone. Raises `FlannelError`."""
    with open_rtnetlink("putting the blackhole route back") as netlink:
        return _restore(netlink, subnet)


def _ours(netlink: Rtnetlink, version: int) -> Iterator[Route]:
    for route in map(parse_route, list(stream_routes(netlink, version=version, kind=_RTN_BLACKHOLE))):
        if route.metric == WORST_METRIC:
            yield route


def _restore(netlink: Rtnetlink, subnet: Prefix) -> bool:
    if any(route.destination == subnet for route in _ours(netlink, subnet.version)):
        return False
    # Of IPv6 the kernel makes a route without a device one of lo.
    route = Route(subnet, None, 0, protocol=RTPROT_BOOT, metric=WORST_METRIC, type=_RTN_BLACKHOLE)
    (refusal,) = netlink.apply([add_route(route)])
    if refusal is None:
        return True
    if refusal.code != errno.EEXIST:
        raise OSError(refusal.code, refusal.why)
    raise FlannelError(
        f"a route to {subnet} with metric {WORST_METRIC} is in place of our blackhole route: "
        f"`{family_of(subnet).ip} route del {subnet} metric {WORST_METRIC}` removes it"
    )
