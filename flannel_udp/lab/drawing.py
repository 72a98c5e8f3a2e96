"""A lab as a drawing: the underlay as a cable, the hosts hanging from it, their pods below. Pure."""

from __future__ import annotations

from typing import Any

_STEM = 6
"""Column within a host's box where its cable comes in and its pods hang."""
_GAP = "  "


def draw(status: dict[str, Any], *, underlay: str, overlay: str, backend: str, port: int, width: int = 100) -> str:
    """Return the lab of `Lab.status` in as many rows of hosts as `width` columns ask for; `port` is that of udp."""
    name = status["name"]
    boxes = [_host_lines(name, host, tunnel=backend == "udp") for host in status["hosts"]]
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
    lines.append(f"overlay {overlay}, backend {backend}{_carried(backend, port)}")
    return "\n".join(lines)


def _carried(backend: str, port: int) -> str:
    match backend:
        case "udp":
            return f": flannel0 to flannel0, each packet the payload of a datagram to UDP port {port}"
        case "host-gw":
            return ": each packet as it is, by the kernel's route to the other host's subnet"
        case "alloc":
            return ": subnets only, the routes between them are left to you"
    return ""


def _host_lines(lab: str, host: dict[str, Any], *, tunnel: bool) -> list[str]:
    """Return one host's lines: its stem, its box, its pods."""
    subnet = host["subnet"]
    base, _, prefix_len = (subnet or "").partition("/")
    first = f"{base.rpartition('.')[0]}.{int(base.rpartition('.')[2]) + 1}/{prefix_len}" if subnet else "none yet"
    rows = [
        f"{host['name']}  (namespace fu-{lab}-{host['name']})",
        f"eth0      {host['underlay']}",
        *([f"flannel0  {base}/32" if subnet else "flannel0  none yet"] if tunnel else []),
        f"cni0      {first}",
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
        lines.append(f"{' ' * _STEM}{branch}─ {pod['name']}  eth0 {pod['ip'] or 'none yet'}")
    return lines
