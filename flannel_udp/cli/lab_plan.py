"""The flags of `lab up` and `lab demo` as a plan: from a topology file, or from the flags themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any

from flannel_udp.backend.table import LAB_BACKENDS
from flannel_udp.cli.arguments import Values
from flannel_udp.errors import UsageError, did_you_mean
from flannel_udp.lab.plan import OVERLAY, Plan
from flannel_udp.lab.sites import Router
from flannel_udp.lab.topology import DATAPATHS, read_topology, with_fixed_subnets

_BESIDE_A_FILE = ("topology", "name", "json")


def plan_of(given: Values, name: str) -> Plan:
    """Return the plan; `name` is that of the lab where nobody says another one. Raises `UsageError`."""
    if "topology" not in given:
        return _from_flags(given, name)
    for flag in given:
        if flag not in _BESIDE_A_FILE:
            raise UsageError(f"--{flag} and --topology are both given: write it into {given['topology']}")
    plan = read_topology(given["topology"], LAB_BACKENDS, name)
    return replace(plan, name=given["name"]) if "name" in given else plan


def with_another_host(plan: Plan, behind: str | None) -> Plan:
    """Return the plan with one host more, perhaps behind a router. Raises `UsageError`.

    It has the subnet of its number where the others' are given as well, unless another one has that.
    """
    name = f"h{plan.hosts + 1}"
    more = replace(
        plan,
        hosts=plan.hosts + 1,
        agents=None if plan.agents is None else (*plan.agents, name),
        behind=plan.behind if behind is None else {**plan.behind, name: behind},
    )
    if not plan.subnets:
        return more
    own = with_fixed_subnets(more, LAB_BACKENDS).subnets[name]
    taken = {part for parts in plan.subnets.values() for part in parts}
    return more if taken & set(own) else replace(more, subnets={**plan.subnets, name: own})


def _from_flags(given: Values, name: str) -> Plan:
    asked = {key: given[key] for key in ("hosts", "pods", "registry", "families") if key in given}
    config: dict[str, Any] = {"Network": str(OVERLAY)}
    if "backend" in given:
        config["Backend"] = {"Type": given["backend"]}
    plan = Plan(name=given.get("name", name), config=config, **asked)
    routed = given.get("routed", 0)
    if routed >= plan.hosts:
        raise UsageError(f"--routed {routed}: of {plan.hosts} hosts 0 to {plan.hosts - 1} can be behind a router")
    names = plan.host_names
    host_args = _datapaths(names, given.get("datapath"))
    behind = dict.fromkeys(names[plan.hosts - routed :], "r1")
    plan = replace(plan, host_args=host_args, routers={"r1": Router()} if behind else {}, behind=behind)
    return with_fixed_subnets(plan, LAB_BACKENDS) if given.get("fixed") else plan


def _datapaths(hosts: Sequence[str], text: str | None) -> dict[str, tuple[str, ...]]:
    """Return the argument of each host's agent; a list goes round."""
    if text is None:
        return {}
    given = text.split(",")
    unknown = [datapath for datapath in given if datapath not in DATAPATHS]
    if unknown:
        hint = did_you_mean(unknown[0], DATAPATHS)
        raise UsageError(f"--datapath {text}: {unknown[0]!r} is none of {', '.join(DATAPATHS)}{hint}")
    return {host: (f"--datapath={datapath}",) for host, datapath in zip(hosts, cycle(given), strict=False)}
