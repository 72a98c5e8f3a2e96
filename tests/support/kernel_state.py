"""What a host's kernel has by way of links, addresses, routes and neighbours: to compare before and after."""

from __future__ import annotations

from flannel_udp.lab.node import Host


def kernel_state(host: Host) -> set[str]:
    """Return a line for each of them, but for what changes by itself: lifetimes, indices, carriers."""
    links = host.run(["ip", "-br", "link"]).stdout.splitlines()
    addresses = host.run(["ip", "-4", "-o", "address"]).stdout.splitlines()
    routes = host.run(["ip", "-4", "route", "show", "table", "all"]).stdout.splitlines()
    neighbours = host.run(["ip", "-4", "neighbour", "show", "nud", "permanent"]).stdout.splitlines()
    return {
        *(f"link {line.split()[0].partition('@')[0]}" for line in links),
        *(f"address {' '.join(line.partition(' scope')[0].split()[1:])}" for line in addresses),
        *(f"route {line.strip().removesuffix(' linkdown')}" for line in routes),
        *(f"neighbour {line.strip()}" for line in neighbours),
    }


def ours_of(host: Host) -> list[str]:
    """Return the routes that bear our protocol number, without the number."""
    lines = host.run(["ip", "-4", "route", "show", "proto", "82"]).stdout.splitlines()
    return [line.strip() for line in lines]


def lease_end_of(host: Host) -> str | None:
    """Return the address on `lo` on which our routes hang, with its lifetime: ``10.1.15.0/32 forever``."""
    lines = host.run(["ip", "-4", "-o", "address", "show", "dev", "lo", "label", "lo:flannel"]).stdout.splitlines()
    found = [f"{line.split()[3]} {line.partition('valid_lft ')[2].split()[0]}" for line in lines]
    assert len(found) < 2, found
    return found[0] if found else None
