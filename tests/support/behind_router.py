"""Two hosts of one link that know each other through a router, and again as they are: what DirectRouting follows.

The lab's own namespace, which has the underlay's bridge, is the router. For hosts that really are on another link
there is `Plan.routers`.
"""

from __future__ import annotations

from pathlib import Path

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.netns import call_inside
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import UNDERLAY_GATEWAY


def make_router(lab: Lab) -> None:
    """Let the lab's namespace forward, and send no redirects, by which hosts would find each other again."""

    def write() -> None:
        conf = Path("/proc/sys/net/ipv4/conf")
        for setting in conf.glob("*/send_redirects"):
            setting.write_text("0\n")
        (conf / "all" / "forwarding").write_text("1\n")

    call_inside(lab.net.namespace, write)


def route_past(one: Host, other: Host) -> None:
    """Let each of two hosts on one link reach the other through the router."""
    one.configure(f"route add {other.underlay} via {UNDERLAY_GATEWAY}")
    other.configure(f"route add {one.underlay} via {UNDERLAY_GATEWAY}")


def route_straight(one: Host, other: Host) -> None:
    """Undo `route_past`."""
    one.configure(f"route del {other.underlay}")
    other.configure(f"route del {one.underlay}")
