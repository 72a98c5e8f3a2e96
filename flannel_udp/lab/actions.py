"""What the commands of `flannel-udp lab` do: results to stdout, progress to stderr."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table

from flannel_udp.errors import FlannelError, UsageError
from flannel_udp.lab.by_hand import ALLOC, routes_from
from flannel_udp.lab.capture import format_document, trace_document
from flannel_udp.lab.demo import demo_document, run_demo
from flannel_udp.lab.faults import present_faults
from flannel_udp.lab.graph import graph, graph_svg
from flannel_udp.lab.inside import become
from flannel_udp.lab.inspection import inspect, list_labs
from flannel_udp.lab.interruptible import interruptible
from flannel_udp.lab.lab import Lab, lab_names, no_lab, remove
from flannel_udp.lab.node import Pod
from flannel_udp.lab.plan import DEFAULT_NAME, Plan
from flannel_udp.lab.progress import progress

Given = Mapping[str, Any]
"""The values of a command's flags and arguments, by name; a flag that nobody gave is absent."""

_WIDTH = 1_000
"""Columns: a narrow terminal wraps by itself, and no address is cut, whoever reads."""

_LOOK_S = 0.2
"""How often a log is looked at for more."""

_LOGGER = logging.getLogger("flannel_udp.lab")


def up(given: Given, plan: Plan) -> int:
    """Build a lab and show it."""
    lab = Lab(plan)
    with progress(_LOGGER, "lab"), interruptible():
        lab.up()
    if given.get("json"):
        print_json(lab.status())
        return 0
    _show(lab)
    option = "" if lab.name == DEFAULT_NAME else f" --name {lab.name}"
    on_h1 = f"flannel-udp lab exec{option} h1 --"
    if lab.plan.backend == ALLOC and (routes := routes_from(lab, lab.hosts[0])):
        sys.stdout.write("\nalloc leaves the routes between the hosts to you. On each host, as on h1:\n")
        sys.stdout.write("".join(f"     {on_h1} ip {route}\n" for route in routes))
    sys.stdout.write(f"\ntry: {on_h1} flannel-udp status\n     {on_h1} ip route\n     flannel-udp lab down{option}\n")
    return 0


def attached(given: Given) -> Lab:
    """Return the lab that is meant. Raises `FlannelError` where it is not up."""
    return Lab.attach(given.get("name", DEFAULT_NAME))


def status(given: Given) -> int:
    """Show a lab."""
    lab = attached(given)
    if given.get("json"):
        print_json(lab.status())
    else:
        _show(lab)
    return 0


def print_json(document: Any) -> None:
    """Write a document for programs."""
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


def tell(given: Given, done: Sequence[str], otherwise: str = "") -> int:
    """Write a line for each thing that was done, `otherwise` for none, or a document of them; return the exit code."""
    if given.get("json"):
        print_json({"done": list(done)})
    else:
        sys.stdout.write("".join(f"{line}\n" for line in done or [otherwise]))
    return 0


def _show(lab: Lab) -> None:
    table = _table(("host", "underlay", "subnet", "backend", "agent", "pods"), f"lab {lab.name}")
    for host in lab.hosts:
        pid = host.agent_pid()
        state = "-" if pid is None else f"{'ready' if host.is_ready() else 'not ready'} (process {pid})"
        underlay = "\n".join(str(host.underlay_of(version)) for version in lab.plan.versions)
        subnet = "\n".join(map(str, host.prefixes))
        pods = "\n".join(
            f"{pod.name} {address}"
            for pod in host.pods
            for version in lab.plan.versions
            if (address := pod.known_address(version)) is not None
        )
        table.add_row(host.name, underlay, subnet or "-", host.backend or "-", state, pods or "-")
    Console(width=_WIDTH).print(table)


def _table(headings: Sequence[str], title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    return table


def execute(given: Given) -> NoReturn:
    """Become the command that is run in a node."""
    lab = attached(given)
    become(lab, lab.node(given["HOST[/POD]"]), given["COMMAND"])


def logs(given: Given) -> int:
    """Print a host's log, and if asked for what comes, until the lab goes."""
    host = attached(given).host(given["HOST"])
    if not host.log_file.exists():
        raise FlannelError(f"{host.name}: no agent of ours was started here")
    with host.log_file.open(errors="replace") as log:
        shutil.copyfileobj(log, sys.stdout)
        while given.get("f") and host.log_file.exists():
            sys.stdout.flush()
            time.sleep(_LOOK_S)
            shutil.copyfileobj(log, sys.stdout)
    return 0


def list_all(given: Given) -> int:
    """Show all labs of the machine, a line each."""
    rows = list_labs()
    if given.get("json"):
        print_json(rows)
        return 0
    if not rows:
        sys.stdout.write("no lab is up\n")
        return 0
    table = _table(("lab", "hosts", "pods", "backend", "registry", "agents"))
    for row in rows:
        known = [str(row[key]) for key in ("hosts", "pods", "backend", "registry")]
        agents = row["agents"]
        running = f"{agents['running']} of {agents['planned']} run" if agents else ""
        table.add_row(row["name"], *known, running) if row["whole"] else table.add_row(row["name"], "half-made")
    Console(width=_WIDTH).print(table)
    return 0


def inspect_one(given: Given) -> int:
    """Print all that there is of a lab."""
    print_json(inspect(attached(given)))
    return 0


def graph_one(given: Given) -> int:
    """Draw a lab."""
    lab = attached(given)
    if given.get("json"):
        print_json({"lab": lab.status(), "faults": present_faults(lab)})
    elif given.get("svg"):
        sys.stdout.write(graph_svg(lab))
    else:
        sys.stdout.write(f"{graph(lab, shutil.get_terminal_size((100, 24)).columns)}\n")
    return 0


def follow(given: Given) -> int:
    """Send a ping and show it at each place on its way; return 1 where it did not arrive."""
    lab = attached(given)
    source, target = (_pod(lab, given[end]) for end in ("SRC", "DST"))
    if source.host is target.host:
        raise UsageError(f"{source.path} and {target.path} are on the same host: its bridge is all that is between")
    document = trace_document(source, target, int(given.get("family", lab.plan.versions[0])))
    if given.get("json"):
        print_json(document)
    else:
        sys.stdout.write(f"{format_document(document)}\n")
    return 0 if document["steps"][-1]["seen"] else 1


def _pod(lab: Lab, path: str) -> Pod:
    node = lab.node(path)
    if not isinstance(node, Pod):
        raise UsageError(f"lab follow goes from pod to pod, and {path} is none: h1/p1 is one")
    return node


def down(given: Given) -> int:
    """Remove one lab, or all."""
    every = given.get("all", False)
    names = lab_names() if every else [given.get("name", DEFAULT_NAME)]
    removed, faults = [], []
    with progress(_LOGGER, "lab"):
        for name in names:
            try:
                if remove(name):
                    removed.append(name)
            except FlannelError as error:  # the others go all the same
                faults.append(error)
    if faults:
        raise faults[0]
    if not removed and not every:
        raise no_lab(names[0])
    if given.get("json"):
        print_json({"removed": removed})
    else:
        sys.stdout.write(f"removed: {', '.join(removed)}\n" if removed else "no lab is up\n")
    return 0


def demo(given: Given, plan: Plan) -> int:
    """Show what a lab is, and take it away."""
    width = shutil.get_terminal_size((100, 24)).columns
    with progress(_LOGGER, "lab"), interruptible():
        if given.get("json"):
            document = demo_document(plan)
            print_json(document)
            complete = document["ok"]
        else:
            complete = run_demo(plan, sys.stdout, width)
    if not complete:
        raise FlannelError("a ping was lost: see above which")
    return 0
