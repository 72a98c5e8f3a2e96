"""A lab's plan as a topology file: what `topology.read_topology` makes the same plan of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import tomli_w

from flannel_udp.errors import FlannelError
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.plan import Plan
from flannel_udp.lab.sites import Cable

_RATE_UNITS = {10**9: "gbit", 10**6: "mbit", 10**3: "kbit"}
_DATAPATH = "--datapath="


def saved(lab: Lab) -> str:
    """Return a lab that is up as a topology file; each host keeps the subnet that it has now. Raises `FlannelError`."""
    now = {host.name: tuple(map(str, host.prefixes)) for host in lab.hosts if host.runs_agent and host.prefixes}
    return write_topology(replace(lab.plan, subnets={**lab.plan.subnets, **now}))


def write_topology(plan: Plan) -> str:
    """Return a plan as a topology file. Raises `FlannelError` for what a file cannot say."""
    if plan.reservations:
        raise FlannelError(f"a topology file has no reservations, and the lab {plan.name} has")
    usual = Plan()
    keys = ("name", "hosts", "pods", "registry", "families", "underlay_mtu", "offload", "seed")
    top: dict[str, Any] = {key: getattr(plan, key) for key in keys}
    top = {key: value for key, value in top.items() if key == "hosts" or value != getattr(usual, key)}
    return tomli_w.dumps(
        {
            **top,
            "fixed_subnets": False,  # each has its own, as far as it is known
            "network": dict(plan.config),
            "host": _without_empty({name: _host(plan, name) for name in plan.host_names}),
            "router": {name: _router(plan, name) for name in plan.router_names},
        }
    )


def _host(plan: Plan, name: str) -> dict[str, Any]:
    runs_agent = name in plan.agent_hosts
    arguments = (*plan.agent_args, *plan.host_args.get(name, ()))
    datapath = next((word.removeprefix(_DATAPATH) for word in arguments[:1] if word.startswith(_DATAPATH)), None)
    return _said(
        behind=plan.behind.get(name),
        subnets=list(plan.subnets.get(name, ())) if runs_agent else None,
        agent=None if runs_agent else False,
        datapath=datapath if runs_agent else None,
        arguments=list(arguments if datapath is None else arguments[1:]) if runs_agent else None,
        **_cable(plan.cable(name)),
        mtu=plan.cable(name).mtu,
    )


def _router(plan: Plan, name: str) -> dict[str, Any]:
    router = plan.routers[name]
    return _said(
        behind=plan.behind.get(name),
        nat=router.nat or None,
        forward=router.forward,
        mtu=router.mtu,
        **_cable(plan.cable(name)),
    )


def _cable(cable: Cable) -> dict[str, str | None]:
    return {
        "rate": None if cable.rate is None else _rate(cable.rate),
        "delay": f"{cable.delay_ms:.10g}ms" if cable.delay_ms else None,
        "loss": f"{cable.loss * 100:.10g}%" if cable.loss else None,
    }


def _rate(bits_s: int) -> str:
    """Return a rate in the largest unit that it is a whole number of thousandths of."""
    factor = next(factor for factor in _RATE_UNITS if bits_s >= factor and bits_s * 1000 % factor == 0)
    return f"{bits_s / factor:.3f}".rstrip("0").rstrip(".") + _RATE_UNITS[factor]


def _said(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value not in (None, [])}


def _without_empty(tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {name: table for name, table in tables.items() if table}
