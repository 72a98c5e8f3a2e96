"""A topology file: what a lab shall look like, as TOML, read into a `Plan`. See examples/labs and docs/lab.md.

Every fault is one line with the file and the key, as the file spells it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from flannel_udp.errors import ConfigError, UsageError, did_you_mean
from flannel_udp.lab.plan import (
    DEFAULT_NAME,
    FAMILIES,
    MAX_PODS,
    MTU_MAX,
    MTU_MIN,
    OFFLOADS,
    OVERLAY,
    REGISTRIES,
    Plan,
)
from flannel_udp.lab.sites import MAX_DELAY_MS, MAX_HOSTS, Cable, Router
from flannel_udp.lab.toml_table import Table, parse, read_text, shown
from flannel_udp.model import Prefix, Subnet
from flannel_udp.netconf.config import AnyRange, NetworkConfig, OptionsReader, parse_network_config

Backends = Mapping[str, OptionsReader]

DATAPATHS = ("auto", "kernel", "userspace")
_LINK_KEYS = ("rate", "delay", "loss")
_KEYS = (
    "name",
    "hosts",
    "pods",
    "registry",
    "families",
    "underlay_mtu",
    "offload",
    *_LINK_KEYS,
    "seed",
    "fixed_subnets",
    "network",
    "host",
    "router",
)
_HOST_KEYS = ("agent", "arguments", "behind", "datapath", "subnets", "mtu", *_LINK_KEYS)
_ROUTER_KEYS = ("behind", "forward", "mtu", "nat", *_LINK_KEYS)
_AGENT_KEYS = ("arguments", "datapath", "subnets")
_QUANTITY = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)(?P<unit>[a-z%]+)")
_RATES = {"kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
_RATE_MIN, _RATE_MAX = 8_000, 100 * 10**9
_DELAYS = {"ms": 1.0, "s": 1000.0}
_DELAY_MIN_MS = 0.1
_SEED_MAX = 2**31 - 1


def read_topology(path: Path, backends: Backends, name: str = DEFAULT_NAME) -> Plan:
    """Read a topology file; `backends` are those that a network configuration may name. Raises `UsageError`.

    `name` is the lab's if the file has none.
    """
    return plan_of(Table(str(path), parse(path, read_text(path, "topology file"))), backends, name)


def plan_of(top: Table, backends: Backends, name: str = DEFAULT_NAME) -> Plan:
    """Return the plan that a topology's keys make, which may be a table of another file. Raises `UsageError`."""
    usual = Plan()
    top.require(_KEYS)
    network = top.table("network")
    has_network = any(key.lower() == "network" for key in network.values)  # flannel reads keys in any case
    plan = _made(
        top,
        usual,
        name=top.text("name", name),
        hosts=top.integer("hosts", usual.hosts, 1, MAX_HOSTS),
        pods=top.integer("pods", usual.pods, 0, MAX_PODS),
        registry=top.word("registry", usual.registry, REGISTRIES),
        families=top.word("families", usual.families, tuple(FAMILIES)),
        underlay_mtu=top.integer("underlay_mtu", usual.underlay_mtu, MTU_MIN, MTU_MAX),
        offload=top.word("offload", usual.offload, OFFLOADS),
        seed=top.integer("seed", usual.seed, 0, _SEED_MAX),
        config=network.values if has_network else {"Network": str(OVERLAY), **network.values},
    )
    config = _config_of(plan, f"{top.place('network')}: {top.name_of('network')}", backends)
    hosts = _hosts_of(top, plan)
    plan = _made(top, plan, **_sites(top, plan, hosts))
    subnets = number_subnets(plan, config) if top.boolean("fixed_subnets", default=True) else {}
    subnets |= {
        own: _own_subnets(host, given, config) for own, host in hosts.items() if (given := host.texts("subnets"))
    }
    agents = tuple(name for name in plan.host_names if name not in hosts or hosts[name].boolean("agent", default=True))
    _require_apart(top, {name: subnets[name] for name in agents if name in subnets})
    return replace(
        plan,
        agents=None if len(agents) == plan.hosts else agents,
        host_args={name: args for name, host in hosts.items() if (args := _arguments(host))},
        subnets={name: subnets[name] for name in agents if name in subnets},
    )


def with_fixed_subnets(plan: Plan, backends: Backends) -> Plan:
    """Return the plan with the subnets of `number_subnets`. Raises `UsageError`."""
    return replace(plan, subnets=number_subnets(plan, _config_of(plan, "network configuration", backends)))


def number_subnets(plan: Plan, config: NetworkConfig) -> dict[str, tuple[str, ...]]:
    """Return each host's subnet by its number, one part a family: h1 has the first that may be leased, and so on.

    Raises `UsageError` where there are fewer than hosts.
    """
    ranges = [found for version in plan.versions if (found := config.of(version)) is not None]
    for found in ranges:
        if found.count < plan.hosts:
            raise UsageError(f"{found.network} has {found.count} subnets, too few for {plan.hosts} hosts")
    return {name: tuple(str(_nth(found, number)) for found in ranges) for number, name in enumerate(plan.host_names)}


def _nth(found: AnyRange, number: int) -> Prefix:
    start = int(found.first.network_address) + number * found.step
    return type(found.first)((start, found.subnet_len))


def _made(top: Table, plan: Plan, **values: Any) -> Plan:
    """Return the plan with these values."""
    try:
        return replace(plan, **values)
    except UsageError as error:
        raise UsageError(f"{top.place()}: {error}") from None


def _config_of(plan: Plan, where: str, backends: Backends) -> NetworkConfig:
    """Return the plan's network configuration. Raises `UsageError` for what flannel would pass over, too."""
    try:
        text = json.dumps(dict(plan.config))
    except TypeError:
        raise UsageError(f"{where}: dates and times are nothing that a network configuration has") from None
    try:
        parsed = parse_network_config(text, backends)
    except ConfigError as error:
        raise UsageError(f"{where}: {error.faults[0]}") from None
    if parsed.warnings:
        raise UsageError(f"{where}: correct what agents would pass over: {parsed.warnings[0]}")
    return parsed.config


def _hosts_of(top: Table, plan: Plan) -> dict[str, Table]:
    """Return the tables host.h1, host.h2 and so on that there are."""
    tables = top.table("host")
    for name in tables.values:
        if name not in plan.host_names:
            hint = did_you_mean(name, plan.host_names)
            tables.wrong(name, f"the lab has hosts {plan.host_names[0]} to {plan.host_names[-1]}{hint}")
        tables.table(name).require(_HOST_KEYS)
    found = {name: tables.table(name) for name in plan.host_names if name in tables.values}
    for host in found.values():
        for key in _AGENT_KEYS:
            if host.values.get(key) and not host.boolean("agent", default=True):
                host.wrong(key, "no agent of ours runs there")
    return found


def _own_subnets(host: Table, given: Sequence[str], config: NetworkConfig) -> tuple[str, ...]:
    try:
        subnet = Subnet.made_of(map(ip_network, given))
    except ValueError as error:
        host.wrong("subnets", str(error))
    if not config.fits(subnet):
        ranges = [found for version in config.versions if (found := config.of(version)) is not None]
        wanted = " and ".join(f"a /{found.subnet_len} from {found.first} to {found.last}" for found in ranges)
        host.wrong("subnets", f"{shown(list(given))} does not fit the network: give {wanted}")
    return tuple(map(str, subnet.prefixes))


def _require_apart(top: Table, subnets: Mapping[str, Sequence[str]]) -> None:
    owners: dict[str, str] = {}
    for name, parts in subnets.items():
        for part in parts:
            if part in owners:
                top.wrong(f"host.{name}.subnets", f"{part} is {owners[part]}'s already")
            owners[part] = name


def _sites(top: Table, plan: Plan, hosts: Mapping[str, Table]) -> dict[str, Any]:
    """Return the plan's routers, what is behind them, and what the cables are like."""
    tables = top.table("router")
    routers = {name: tables.table(name) for name in tables.values}
    for router in routers.values():
        router.require(_ROUTER_KEYS)
    usual = _cable(top, Cable())
    cables = dict.fromkeys(plan.host_names, usual)
    cables |= {name: replace(_cable(host, usual), mtu=_mtu(host)) for name, host in hosts.items()}
    cables |= {name: _cable(router, Cable()) for name, router in routers.items()}
    behind = {name: _behind(node, routers) for name, node in {**hosts, **routers}.items() if "behind" in node.values}
    return {
        "routers": {
            name: Router(
                nat=router.boolean("nat", default=False),
                forward=router.text("forward", "") or None,
                mtu=_mtu(router),
            )
            for name, router in routers.items()
        },
        "behind": behind,
        "cables": {name: cable for name, cable in cables.items() if cable != Cable()},
    }


def _cable(table: Table, usual: Cable) -> Cable:
    """Return what a link is like by the keys rate, delay, loss and mtu; of what is not said as `usual`."""
    rate = _quantity(table, "rate", _RATES, (_RATE_MIN, _RATE_MAX), "a rate from 8kbit to 100gbit, such as 10mbit")
    delay = _quantity(table, "delay", _DELAYS, (_DELAY_MIN_MS, MAX_DELAY_MS), "a delay from 0.1ms to 2s, such as 40ms")
    loss = _quantity(table, "loss", {"%": 1.0}, (0.001, 100), "a loss from 0.001% to 100%, such as 5%")
    return Cable(
        rate=usual.rate if rate is None else round(rate),
        delay_ms=usual.delay_ms if delay is None else delay,
        loss=usual.loss if loss is None else loss / 100,
    )


def _quantity(table: Table, key: str, units: Mapping[str, float], span: tuple[float, float], what: str) -> float | None:
    """Return a number with a unit, times that unit's factor; ``None``: the key is not there."""
    if key not in table.values:
        return None
    text = table.text(key, "")
    found = _QUANTITY.fullmatch(text)
    value = float(found["number"]) * units.get(found["unit"], 0) if found else 0.0
    if not span[0] <= value <= span[1]:
        table.wrong(key, f"{shown(text)} is not {what}")
    return value


def _mtu(table: Table) -> int | None:
    """Return the key `mtu` in bytes."""
    return table.integer("mtu", 0, MTU_MIN, MTU_MAX) if "mtu" in table.values else None


def _behind(node: Table, routers: Mapping[str, Table]) -> str:
    if not routers:
        node.wrong("behind", "there is no router: add a table such as [router.r1]")
    return node.word("behind", "", tuple(routers))


def _arguments(host: Table) -> tuple[str, ...]:
    datapath = (f"--datapath={host.word('datapath', 'auto', DATAPATHS)}",) if "datapath" in host.values else ()
    return (*datapath, *host.texts("arguments"))
