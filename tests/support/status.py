"""What two agents say of themselves, one that runs and one that waits and so knows little; and of a peer."""

from __future__ import annotations

from flannel_udp.admin.figures import Figures, LatenessFigures, LeaseFigures, PeerFigures, RegistryFigures, Requests
from flannel_udp.admin.shapes import CloudRoutes, Event, PeerRow, RouteRow, Status

RUNNING: Status = {
    "version": "0.1.0",
    "pid": 4711,
    "uptime_s": 90_061.9,
    "state": "running",
    "ready": True,
    "problems": [],
    "degraded": [],
    "last_errors": {},
    "registry": "etcd",
    "network": "10.1.0.0/16",
    "subnet": "10.1.15.0/24",
    "public_ip": "192.0.2.1",
    "ipv6_network": None,
    "ipv6_subnet": None,
    "public_ipv6": None,
    "interface": {"name": "eth0", "address": "192.0.2.1", "mtu": 1500},
    "tunnel": {"name": "flannel0", "address": "10.1.15.0", "mtu": 1472},
    "ipv6_tunnel": None,
    "backend": {"type": "udp", "port": 8285},
    "lease": {"key": "10.1.15.0-24", "expires_in_s": 86_399.5, "reserved": False},
    "peers": 2,
    "revision": 42,
    "offload": ["tso", "udp-gro"],
    "workers": 2,
    "worker_packets": [{"packets_out": 1_234_560, "packets_in": 0}, {"packets_out": 7, "packets_in": 0}],
    "socket_buffers": {"receive_bytes": 4_194_304, "send_bytes": 212_992},
    "host_repairs": {"link": 1_000, "route": 2, "tunnel": 0},
    "peer_health": {"heard": 1, "idle": 1, "silent": 0, "ill": 0},
    "narrow_paths": 0,
    "icmp_errors": 0,
    "capabilities": ["CAP_NET_ADMIN", "CAP_NET_RAW"],
    "counters": {
        "out": {"packets": 1_234_567, "bytes": 1_500_000_000, "drops": {"no_route": 3, "too_short": 0}},
        "in": {"packets": 0, "bytes": 0, "drops": {}},
        "icmp": {"sent": 1, "rate_limited": 2, "failed": 0},
        "system_calls": {"tun_reads": 1_000, "udp_sends": 7},
        "offloaded_in": {"partial_checksums": 5, "super_packets": 0},
    },
    "families": {
        "ipv4": {
            "peers": 2,
            "degraded": [],
            "counters": {
                "out": {"packets": 1_234_567, "bytes": 1_500_000_000, "drops": {"no_route": 3, "too_short": 0}},
                "in": {"packets": 0, "bytes": 0, "drops": {}},
                "icmp": {"sent": 1, "rate_limited": 2, "failed": 0},
            },
        }
    },
    "last_dropped": {
        "no_route": [
            {
                "time": 1_800_000_000.5,
                "age_s": 12.0,
                "direction": "out",
                "outer_address": None,
                "source": "10.1.15.2",
                "destination": "10.1.99.1",
                "protocol": 1,
                "bytes": 84,
                "summary": "10.1.15.2 > 10.1.99.1, ICMP, 84 bytes",
            }
        ]
    },
    "kernel_drops": {"socket": 5, "tunnel_out": 0},
}
DUAL: Status = {
    **RUNNING,
    "ipv6_network": "fd00:1::/48",
    "ipv6_subnet": "fd00:1:0:15::/64",
    "public_ipv6": "2001:db8::1",
    "interface": {"name": "eth0", "address": "192.0.2.1", "mtu": 1500, "ipv6_address": "2001:db8::1"},
    "tunnel": {"name": "flannel0", "address": "10.1.15.0/32", "mtu": 1452},
    "ipv6_tunnel": {"name": "flannel0", "address": "fd00:1:0:15::/128", "mtu": 1452},
    "families": {
        "ipv4": {
            "peers": 1,
            "degraded": [],
            "counters": {
                "out": {"packets": 1_000_000, "bytes": 1_400_000_000, "drops": {"no_route": 1, "too_short": 0}},
                "in": {"packets": 0, "bytes": 0, "drops": {}},
                "icmp": {"sent": 1, "rate_limited": 0, "failed": 0},
            },
        },
        "ipv6": {
            "peers": 1,
            "degraded": ["forwarding"],
            "counters": {
                "out": {"packets": 234_567, "bytes": 100_000_000, "drops": {"no_route": 2, "too_short": 0}},
                "in": {"packets": 0, "bytes": 0, "drops": {}},
                "icmp": {"sent": 0, "rate_limited": 2, "failed": 0},
            },
        },
    },
}
"""Likewise, with both families."""
WAITING: Status = {
    **RUNNING,
    "uptime_s": 5.0,
    "state": "waiting for configuration",
    "ready": False,
    "network": None,
    "subnet": None,
    "public_ip": None,
    "interface": None,
    "tunnel": None,
    "backend": None,
    "lease": None,
    "peers": 0,
    "revision": None,
    "offload": None,
    "workers": None,
    "worker_packets": None,
    "socket_buffers": None,
    "host_repairs": None,
    "peer_health": None,
    "counters": None,
    "families": {},
    "last_dropped": None,
    "kernel_drops": None,
}
PEER: PeerRow = {
    "subnet": "10.1.16.0/24",
    "public_ip": "192.0.2.2",
    "packets_out": 1,
    "bytes_out": 84,
    "packets_in": 2,
    "bytes_in": 168,
    "health": "heard",
    "heard_ago_s": 2.5,
    "error": None,
    "error_ago_s": None,
    "path_mtu": None,
    "problem": None,
}
ROUTES: list[RouteRow] = [
    {"subnet": "10.1.9.0/24", "verdict": "no route", "reason": "192.0.2.9 is not on-link"},
    {"subnet": "10.1.15.0/24", "verdict": "own subnet"},
    {
        "subnet": "10.1.16.0/24",
        "verdict": "peer",
        "public_ip": "192.0.2.2",
        "interface": "eth0",
        "tunnel": "flannel0",
        "port": 8285,
    },
    {
        "subnet": "fd00:1:0:16::/64",
        "verdict": "peer",
        "public_ip": "2001:db8::2",
        "interface": "eth0",
        "datapath": "direct",
        "problem": "nothing comes back",
    },
]
EVENT: Event = {
    "time": 1_800_000_000.5,
    "event": "peer",
    "what": "added",
    "subnet": "10.1.16.0/24",
    "public_ip": "192.0.2.2",
}
FIGURES = Figures(
    RegistryFigures(
        requests={"list": Requests(3, 1, 0.25), "renew": Requests(0, 0, 0.0)},
        watching=True,
        outages=2,
        restarts=2,
        snapshots=1,
        changes=40,
        last_event_s=1_800_000_000.5,
    ),
    LatenessFigures(buckets=((0.005, 90_000), (0.1, 90_060), (float("inf"), 90_061)), total_s=12.5),
    LeaseFigures(acquired=1, lost=0, renewals=24, failures=3, renewed_s=1_799_999_000.25),
    published=17,
    publishing_s=0.5,
)
"""What the one that runs counts of itself."""
NO_FIGURES = Figures(RegistryFigures({}, False, 0, 0, 0, 0, None), LatenessFigures(((float("inf"), 0),), 0.0))
"""What the one that waits counts."""
BUSY_PEER = PeerFigures("10.1.16.0/24", "192.0.2.2", packets_out=1, bytes_out=84, packets_in=2, bytes_in=168)

CLOUD_ROUTES: CloudRoutes = {
    "provider": "aws-vpc",
    "here": "i-0abc, eni-0abc in eu-central-1",
    "looked_ago_s": 12.5,
    "error": None,
    "cleaner": "10.1.15.0/24",
    "cleans": True,
    "tables": [{"id": "rtb-0abc", "routes": 4, "limit": 50}],
    "routes": [
        {
            "table": "rtb-0abc",
            "destination": "10.1.15.0/24",
            "target": "eni-0abc",
            "verdict": "own",
            "text": "to this host",
            "action": None,
            "due_in_s": None,
        },
        {
            "table": "rtb-0abc",
            "destination": "10.1.17.0/24",
            "target": "eni-0def",
            "verdict": "stale",
            "text": "leads nowhere",
            "action": "remove",
            "due_in_s": 240.0,
        },
    ],
}
