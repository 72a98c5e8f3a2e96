"""What the commands do that make a lab that is up a larger one, or a file."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from flannel_udp.lab.actions import Given, attached, print_json
from flannel_udp.lab.interruptible import interruptible
from flannel_udp.lab.joining import add_host
from flannel_udp.lab.plan import DEFAULT_NAME, Plan
from flannel_udp.lab.progress import progress
from flannel_udp.lab.saving import saved

_LOGGER = logging.getLogger("flannel_udp.lab")


def add(given: Given, extend: Callable[[Plan], Plan]) -> int:
    """Add a host, and tell where it is."""
    with progress(_LOGGER, "lab"), interruptible():
        host = add_host(given.get("name", DEFAULT_NAME), extend)
    if given.get("json"):
        (row,) = (row for row in attached(given).status()["hosts"] if row["name"] == host.name)
        print_json(row)
        return 0
    versions = host.plan.versions
    where = " and ".join(str(host.underlay_of(version)) for version in versions)
    pods = [f"{pod.name} {ip}" for pod in host.pods for version in versions if (ip := pod.known_address(version))]
    has = [*(f"subnet {prefix}" for prefix in host.prefixes), *pods]
    sys.stdout.write(f"{host.name} has joined: {', '.join([where, *has])}\n")
    return 0


def save(given: Given) -> int:
    """Write a lab as a topology file."""
    sys.stdout.write(saved(attached(given)))
    return 0
