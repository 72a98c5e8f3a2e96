"""A lab as a drawing: the underlay as a cable, the hosts hanging from it, their pods below. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_network
from typing import Any

from flannel_udp.lab.tunnel import Tunnel

_STEM = 6
"""Column within a host's box where its cable comes in and its pods hang."""
_GAP = "  "


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
    boxes = [_host_lines(name, host, tunnels) for host in status["hosts"]]
    box_width = max(len(line) for box in boxes for line in box)
    per_row = max(1, (width + len(_GAP)) // (box_width + len(_GAP)))
    lines = [f"underlay {underlay}: a bridge in the namespace fu-{name}-net"]
    for start in range(0, len(boxes), per_row):
        row = boxes[start : start + per_row]
        cable = ("━" * _STEM + "┯").ljust(box_width + len(_GAP), "━") * len(row)
        height = max(map(len, row))
        lines.append(cable[: -len(_GAP)])
        for i in range(height):
            lines.append(_GAP.join((box[i] if i < len(box) else "").ljust(box_width) for box in row).rstrip())
        lines.append("")
    size = "" if mtu is None else f", MTU {mtu}"
    lines.append(f"overlay {overlay}, backend {backend}{size}{_carried(backend, tunnels)}")
    return "\n".join(lines)


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


def _host_lines(lab: str, host: dict[str, Any], tunnels: Mapping[int, Tunnel | None]) -> list[str]:
    """Return one host's lines: its stem, its box, its pods."""
    devices = devices_of(host, tunnels)
    column = max(map(len, devices)) + 2
    rows = [
        f"{host['name']}  (namespace fu-{lab}-{host['name']})",
        *(
            f"{(device if i == 0 else '').ljust(column)}{address}"
            for device, addresses in devices.items()
            for i, address in enumerate(addresses)
        ),
    ]
    inner = max(map(len, rows)) + 2
    pods = host["pods"]
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
