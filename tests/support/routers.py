"""Routers in place of a lab's bridge: the hosts know nothing of the narrow link in the middle.

    h1 eth0 ─── h1 net h3 ═══════ eth0 h3 h2 ─── eth0 h2
               192.0.2.254       192.0.2.3
               (a router)        (a router)

Every link is point to point; each host and router has its one address as a /32 on all its ports.
"""

from __future__ import annotations

from pathlib import Path

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.netns import call_inside
from flannel_udp.lab.plan import UNDERLAY_GATEWAY
from flannel_udp.lab.underlay import BRIDGE


def put_routers_between(lab: Lab, middle_mtu: int) -> None:
    """Part h1 and h2 of a fresh lab of three hosts, in which no agent runs yet, by two routers."""
    h1, h2, h3 = lab.hosts
    lab.net.configure(
        f"link del {BRIDGE}",
        f"link set h2 netns {h3.namespace}",
        f"addr add {UNDERLAY_GATEWAY}/32 dev h1",
        f"addr add {UNDERLAY_GATEWAY}/32 dev h3",
        f"route add {h1.underlay} dev h1",
        f"route add {h3.underlay} dev h3",
        f"route add {h2.underlay} via {h3.underlay} dev h3",
    )
    call_inside(lab.net.namespace, lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("1\n"))
    h3.configure(
        "addr flush dev eth0",
        f"addr add {h3.underlay}/32 dev eth0",
        f"route add {UNDERLAY_GATEWAY} dev eth0",
        f"route add {h1.underlay} via {UNDERLAY_GATEWAY} dev eth0",
        f"addr add {h3.underlay}/32 dev h2",
        "link set h2 up",
        f"route add {h2.underlay} dev h2",
    )
    for host, router in ((h1, UNDERLAY_GATEWAY), (h2, h3.underlay)):
        host.configure(
            "addr flush dev eth0",
            f"addr add {host.underlay}/32 dev eth0",
            f"route add {router} dev eth0",
            f"route add default via {router}",
        )
    set_middle_mtu(lab, middle_mtu)


def set_middle_mtu(lab: Lab, mtu: int) -> None:
    """Let the link between the routers carry packets of `mtu` bytes."""
    lab.net.configure(f"link set h3 mtu {mtu}")
    lab.hosts[2].configure(f"link set eth0 mtu {mtu}")
