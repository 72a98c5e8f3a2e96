"""What the kernel of a host has of a VXLAN: as iproute2 shows it, but for what changes by itself."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from flannel_udp.lab.kernel_vxlan import KernelPeer
from flannel_udp.lab.node import Host

DEVICE = "flannel.1"


def link_of(host: Host, device: str = DEVICE) -> dict[str, Any]:
    """Return what `ip -d` says of the device."""
    (link,) = json.loads(host.run(["ip", "-d", "-json", "link", "show", device]).stdout)
    return dict(link)


def has_device(host: Host, device: str = DEVICE) -> bool:
    """Tell whether the device is there."""
    return host.run(["ip", "link", "show", device], check=False).returncode == 0


def addresses_of(host: Host, device: str = DEVICE) -> list[str]:
    """Return the device's addresses, of both families: ``10.244.1.0/32``."""
    lines = host.run(["ip", "-o", "address", "show", "dev", device]).stdout.splitlines()
    return [line.split()[3] for line in lines]


def life_of(host: Host, device: str = DEVICE) -> str | None:
    """Return how long the device's address stays: ``forever``, ``86272sec``; ``None`` without one."""
    lines = host.run(["ip", "-4", "-o", "address", "show", "dev", device], check=False).stdout.splitlines()
    return lines[0].partition("valid_lft ")[2].split()[0] if lines else None


def entries_of(host: Host, device: str = DEVICE) -> list[str]:
    """Return the device's neighbours, forwarding entries and routes."""
    if not has_device(host, device):
        return []
    neighbours = host.run(["ip", "-4", "neighbour", "show", "dev", device, "nud", "permanent"]).stdout.splitlines()
    forwarding = host.run(["bridge", "fdb", "show", "dev", device]).stdout.splitlines()
    routes = host.run(["ip", "-4", "route", "show", "dev", device]).stdout.splitlines()
    return sorted(
        [f"neighbour {line.strip()}" for line in neighbours]
        + [f"fdb {line.strip()}" for line in forwarding]
        + [f"route {line.strip()}" for line in routes]
    )


def entries_for(peer: KernelPeer) -> list[str]:
    """Return what there has to be for one peer."""
    first = peer.subnet.network_address
    return [
        f"neighbour {first} lladdr {peer.mac} PERMANENT",
        f"fdb {peer.mac} dst {peer.public_ip} self permanent",
        f"route {peer.subnet} via {first} proto 82 onlink",
    ]


def peer(subnet: str | IPv4Network, public_ip: str, mac: str) -> KernelPeer:
    """Return one from texts."""
    return KernelPeer(IPv4Network(subnet), IPv4Address(public_ip), mac)
