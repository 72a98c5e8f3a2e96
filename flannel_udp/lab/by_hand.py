"""Routes between the hosts put by hand, as somebody has to with the backend alloc, which leaves them to others."""

from __future__ import annotations

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host

ALLOC = "alloc"


def routes_from(lab: Lab, host: Host) -> list[str]:
    """Return the `ip` commands that lead from a host to the subnets of all others."""
    others = [other for other in lab.hosts if other is not host and other.subnet]
    return [f"route add {other.subnet} via {other.underlay}" for other in others]


def put_routes(lab: Lab) -> None:
    """Run them on every host. Raises `FlannelError`."""
    for host in lab.hosts:
        host.configure(*routes_from(lab, host))
