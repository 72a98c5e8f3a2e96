"""A lab as a drawing: each network as a cable, routers and hosts hanging from it, their pods below. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

from flannel_udp.lab.sites import GATEWAY_NUMBER, Cable
from flannel_udp.lab.tunnel import Tunnel

_STEM = 6
"""Column within a host's box where its cable comes in and its pods hang."""
_GAP = "  "
_KINDS = ("routers", "hosts")


@dataclass(frozen=True, slots=True)
class Network:
    """A network of the underlay, and what of `Lab.status` is on it."""

    title: str
    at: str
    """The node that has its bridge: ``net``, or the router that it is behind."""
    routers: list[dict[str, Any]]
    hosts: list[dict[str, Any]]


def networks_of(status: dict[str, Any], underlay: str) -> list[Network]:
    """Return the underlay, whose addresses are given, and the sites behind the routers, each after the one above it."""
    titles: dict[str | None, str] = {None: f"underlay {underlay}"}
    for router in status["routers"]:
        titles[router["name"]] = f"behind {router['name']}, {' and '.join(known(router, 'network'))}"
    return [
        Network(title, name or "net", *([node for node in status[kind] if node["behind"] == name] for kind in _KINDS))
        for name, title in titles.items()
    ]


def draw(
    status: dict[str, Any],
    *,
    underlay: str,
    overlay: str,
    backend: str,
    tunnels: Mapping[int, Tunnel | None],
    mtu: int | None = None,
    width: int = 100,
) -> str:
    """Return the lab of `Lab.status` in as many rows of hosts as `width` columns ask for; `mtu` is the overlay's.

    `tunnels`: what packets of each of the lab's families travel in, by IP version.
    """
    name = status["name"]
    lines: list[str] = []
    for network in networks_of(status, underlay):
        lines.append(f"{network.title}: a bridge in the namespace fu-{name}-{network.at}")
        boxes = [_box(name, router, devices_of_router(router)) for router in network.routers]
        boxes += [_box(name, host, devices_of(host, tunnels), host["pods"]) for host in network.hosts]
        lines += [*_rows(boxes, width), ""]
    size = "" if mtu is None else f", MTU {mtu}"
    lines.append(f"overlay {overlay}, backend {backend}{size}{_carried(backend, tunnels)}")
    return "\n".join(lines)


def _rows(boxes: Sequence[Sequence[str]], width: int) -> list[str]:
    """Return boxes that hang from a cable, so many beside each other as `width` columns ask for."""
    lines: list[str] = []
    box_width = max((len(line) for box in boxes for line in box), default=0)
    per_row = max(1, (width + len(_GAP)) // (box_width + len(_GAP)))
    for start in range(0, len(boxes), per_row):
        row = boxes[start : start + per_row]
        cable = ("━" * _STEM + "┯").ljust(box_width + len(_GAP), "━") * len(row)
        lines += [*([""] if start else []), cable[: -len(_GAP)]]
        for i in range(max(map(len, row))):
            lines.append(_GAP.join((box[i] if i < len(box) else "").ljust(box_width) for box in row).rstrip())
    return lines


def _carried(backend: str, tunnels: Mapping[int, Tunnel | None]) -> str:
    devices = {tunnel.device: tunnel.carried for tunnel in tunnels.values() if tunnel}
    if devices:
        ways = " and ".join(f"{device} to {device}" for device in devices)
        return f": {ways}, each packet {next(iter(devices.values()))}"
    match backend:
        case "host-gw":
            return ": each packet as it is, by the kernel's route to the other host's subnet"
        case "alloc":
            return ": subnets only, the routes between them are left to you"
    return ""


def devices_of(host: dict[str, Any], tunnels: Mapping[int, Tunnel | None]) -> dict[str, list[str]]:
    """Return the interfaces of a host of `Lab.status` and their addresses, in the order in which packets pass them."""
    devices: dict[str, list[str]] = {"eth0": known(host, "underlay")}
    devices |= {tunnel.device: [] for tunnel in tunnels.values() if tunnel}
    devices["cni0"] = []
    for version, tunnel in tunnels.items():
        bridge, own = _addresses(host["subnet" if version == 4 else "subnet_v6"])
        devices["cni0"].append(bridge)
        if tunnel is not None:
            devices[tunnel.device].append(own)
    return devices


def devices_of_router(router: dict[str, Any]) -> dict[str, list[str]]:
    """Return the interfaces of a router of `Lab.status` and their addresses: its uplink, and the bridge behind it."""
    behind = [ip_network(network) for network in known(router, "network")]
    return {
        "eth0": known(router, "uplink"),
        "site": [f"{network[GATEWAY_NUMBER]}/{network.prefixlen}" for network in behind],
    }


def notes_of(node: dict[str, Any]) -> list[str]:
    """Return what else is to be said of a host or a router of `Lab.status`: its link, and its NAT."""
    found = Cable(**node["link"]).words
    notes = [f"link: {', '.join(found)}"] if found else []
    if node.get("nat"):
        notes.append("NAT" if node["forward"] is None else f"NAT, the port goes on to {node['forward']}")
    return notes


def _box(
    lab: str, node: dict[str, Any], devices: Mapping[str, Sequence[str]], pods: Sequence[dict[str, Any]] = ()
) -> list[str]:
    """Return the lines of a host or a router: its stem, its box, its pods."""
    column = max(map(len, devices)) + 2
    rows = [
        f"{node['name']}  (namespace fu-{lab}-{node['name']})",
        *(
            f"{(device if i == 0 else '').ljust(column)}{address}"
            for device, addresses in devices.items()
            for i, address in enumerate(addresses)
        ),
        *notes_of(node),
    ]
    inner = max(map(len, rows)) + 2
    bottom = "┬" if pods else "─"
    lines = [
        " " * _STEM + "│",
        "┌" + ("─" * (_STEM - 1) + "┴").ljust(inner, "─") + "┐",
        *(f"│ {row.ljust(inner - 2)} │" for row in rows),
        "└" + ("─" * (_STEM - 1) + bottom).ljust(inner, "─") + "┘",
    ]
    for i, pod in enumerate(pods):
        branch = "└" if i == len(pods) - 1 else "├"
        lines.append(f"{' ' * _STEM}{branch}─ {pod['name']}  eth0 {' '.join(known(pod, 'ip'))}")
    return lines


def known(said: dict[str, Any], key: str) -> list[str]:
    """Return what `Lab.status` says under the key by each family."""
    return [value for name in (key, f"{key}_v6") if (value := said.get(name))] or ["none yet"]


def _addresses(subnet: str | None) -> tuple[str, str]:
    """Return the addresses of the bridge and of the tunnel's device in a subnet."""
    if subnet is None:
        return "none yet", "none yet"
    network = ip_network(subnet)
    return f"{network[1]}/{network.prefixlen}", f"{network[0]}/{network.max_prefixlen}"
