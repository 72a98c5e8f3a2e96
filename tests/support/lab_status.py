"""What a lab says of itself, for tests of what is drawn of it."""

from __future__ import annotations

from typing import Any


def status(hosts: int, pods: int) -> dict[str, Any]:
    """Return what `lab status --json` says of such a lab of udp, as far as drawings need it."""
    return {
        "name": "demo",
        "routers": [],
        "hosts": [
            {
                "name": f"h{h}",
                "behind": None,
                "link": {},
                "underlay": f"192.0.2.{h}",
                "backend": "udp",
                "subnet": f"10.244.{h}.0/24",
                "pods": [{"name": f"p{p}", "ip": f"10.244.{h}.{p + 1}"} for p in range(1, pods + 1)],
            }
            for h in range(1, hosts + 1)
        ],
    }
