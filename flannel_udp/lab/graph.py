"""A lab that is up as a drawing, and what is wrong with it at the moment below."""

from __future__ import annotations

from flannel_udp.lab.drawing import draw
from flannel_udp.lab.faults import present_faults
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.plan import Plan
from flannel_udp.lab.sites import network_behind
from flannel_udp.lab.svg import draw_svg
from flannel_udp.lab.tunnel import Tunnel, tunnel_of


def draw_lab(lab: Lab, width: int) -> str:
    """Return the drawing, in as many rows of hosts as `width` columns ask for."""
    plan = lab.plan
    return draw(
        lab.status(),
        underlay=_underlay(plan),
        overlay=" and ".join(plan.overlays),
        backend=plan.backend,
        tunnels=_tunnels(plan),
        mtu=lab.hosts[0].mtu,
        width=width,
    )


def graph(lab: Lab, width: int) -> str:
    """Return the drawing, and a line for each thing that is not as it was built."""
    faults = present_faults(lab)
    return "\n".join([draw_lab(lab, width), *(f"now: {line}" for lines in faults.values() for line in lines)])


def graph_svg(lab: Lab, page_width: int | None = None) -> str:
    """Return the same as SVG; with `page_width`, in pixels, for the live page (`draw_svg`)."""
    return draw_svg(
        lab.status(),
        underlay=_underlay(lab.plan),
        overlay=f"{' and '.join(lab.plan.overlays)}, backend {lab.plan.backend}",
        tunnels=_tunnels(lab.plan),
        faults=present_faults(lab),
        page_width=page_width,
    )


def _tunnels(plan: Plan) -> dict[int, Tunnel | None]:
    return {version: tunnel_of(plan, version) for version in plan.versions}


def _underlay(plan: Plan) -> str:
    return " and ".join(str(network_behind(None, version)) for version in plan.versions)
