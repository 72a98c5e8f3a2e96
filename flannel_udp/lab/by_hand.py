"""Routes between the hosts put by hand, as somebody has to with the backend alloc, which leaves them to others."""

from __future__ import annotations

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host

ALLOC = "alloc"


def routes_from(lab: Lab, host: Host) -> list[str]:
    """Return the `ip` commands that lead from a host to the subnets of all others, by the families that it has."""
    own = {subnet.version for subnet in host.prefixes}
    return [
        f"route add {subnet} via {other.underlay_of(subnet.version)}"
        for other in lab.hosts
        if other is not host
        for subnet in other.prefixes
        if subnet.version in own
    ]


def put_routes(lab: Lab) -> None:
    """Run them on every host. Raises `FlannelError`."""
    for host in lab.hosts:
        host.configure(*routes_from(lab, host))
