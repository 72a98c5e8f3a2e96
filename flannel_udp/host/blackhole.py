"""The blackhole route for our own subnet (`--ip-blackhole-route`): what no pod takes is dropped, not routed elsewhere.

Without it a packet for an address of ours that no pod has follows the overlay's route into the tunnel, or the default
route while there is no tunnel. The route has the worst metric there is, so that the bridge's own route for the same
subnet, where there is one, wins; flanneld gives it none, and then the blackhole would hide a bridge that comes later.
Like everything in `netlink`, this blocks for some milliseconds.
"""

from __future__ import annotations

import errno
from ipaddress import IPv4Network
from socket import AF_INET

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from flannel_udp.host.netlink import RT_SCOPE_UNIVERSE, RT_TABLE_MAIN, RTPROT_BOOT, open_netlink

_RTN_BLACKHOLE = 6  # linux/rtnetlink.h
WORST_METRIC = 2**32 - 1
"""Also how the routes of an earlier run are known as ours."""


def keep_blackhole(network: IPv4Network, subnet: IPv4Network | None) -> None:
    """Leave `subnet` as the only one of the overlay `network` that such a route of ours is for, ``None`` for no route.

    Raises `FlannelError`.
    """
    with open_netlink("setting the blackhole route") as ip:
        for message in ip.get_routes(family=AF_INET, table=RT_TABLE_MAIN, type=_RTN_BLACKHOLE):
            found = IPv4Network((message.get_attr("RTA_DST") or 0, message["dst_len"]))
            ours = message["type"] == _RTN_BLACKHOLE and message.get_attr("RTA_PRIORITY") == WORST_METRIC
            if ours and found != subnet and found.subnet_of(network):
                ip.route("del", dst=str(found), table=RT_TABLE_MAIN, type=_RTN_BLACKHOLE, priority=WORST_METRIC)
        if subnet is not None:
            _add(ip, subnet)


def restore_blackhole(subnet: IPv4Network) -> bool:
    """Put the route for `subnet` back and tell whether it was gone; soon done, however many routes there are.

    Raises `FlannelError`.
    """
    with open_netlink("putting the blackhole route back") as ip:
        return _add(ip, subnet)


def _add(ip: IPRoute, subnet: IPv4Network) -> bool:
    """Tell whether there was none. To add is to ask: a look-up would find the bridge's route, which is better."""
    try:
        ip.route(
            "add",
            family=AF_INET,
            dst=str(subnet),
            table=RT_TABLE_MAIN,
            scope=RT_SCOPE_UNIVERSE,
            proto=RTPROT_BOOT,
            type=_RTN_BLACKHOLE,
            priority=WORST_METRIC,
        )
    except NetlinkError as error:
        if error.code == errno.EEXIST:
            return False
        raise
    return True
