"""What two agents say of themselves, one that runs and one that waits and so knows little; and of a peer."""

from __future__ import annotations

from flannel_udp.admin.shapes import PeerRow, Status

RUNNING: Status = {
    "version": "0.1.0",
    "pid": 4711,
    "uptime_s": 90_061.9,
    "state": "running",
    "ready": True,
    "problems": [],
    "registry": "etcd",
    "network": "10.1.0.0/16",
    "subnet": "10.1.15.0/24",
    "public_ip": "192.0.2.1",
    "interface": {"name": "eth0", "address": "192.0.2.1", "mtu": 1500},
    "tunnel": {"name": "flannel0", "address": "10.1.15.0", "mtu": 1472},
    "backend": {"type": "udp", "port": 8285},
    "lease": {"key": "10.1.15.0-24", "expires_in_s": 86_399.5, "reserved": False},
    "peers": 2,
    "revision": 42,
    "offload": ["tso", "udp-gro"],
    "workers": 2,
    "worker_packets": [{"packets_out": 1_234_560, "packets_in": 0}, {"packets_out": 7, "packets_in": 0}],
    "socket_buffers": {"receive_bytes": 4_194_304, "send_bytes": 212_992},
    "host_repairs": {"link": 1_000, "route": 2, "tunnel": 0},
    "capabilities": ["CAP_NET_ADMIN", "CAP_NET_RAW"],
    "counters": {
        "out": {"packets": 1_234_567, "bytes": 1_500_000_000, "drops": {"no_route": 3, "too_short": 0}},
        "in": {"packets": 0, "bytes": 0, "drops": {}},
        "icmp": {"sent": 1, "rate_limited": 2, "failed": 0},
        "system_calls": {"tun_reads": 1_000, "udp_sends": 7},
    },
}
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
    "counters": None,
}
PEER: PeerRow = {
    "subnet": "10.1.16.0/24",
    "public_ip": "192.0.2.2",
    "packets_out": 1,
    "bytes_out": 84,
    "packets_in": 2,
    "bytes_in": 168,
    "problem": None,
}
