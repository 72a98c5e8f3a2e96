"""What the commands of `flannel-udp lab` do: results to stdout, progress to stderr."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rich.console import Console
from rich.table import Table

from flannel_udp.errors import FlannelError
from flannel_udp.lab.by_hand import ALLOC, routes_from
from flannel_udp.lab.demo import run_demo
from flannel_udp.lab.lab import ENDING_SIGNALS, Lab, lab_names, remove
from flannel_udp.lab.plan import OVERLAY, Plan

_LOGGER = logging.getLogger("flannel_udp.lab")


def _up(args: argparse.Namespace) -> int:
    lab = Lab(_plan(args))
    with _progress(), _interruptible():
        lab.up()
    _show(lab)
    option = "" if args.name == "lab" else f" --name {args.name}"
    on_h1 = f"flannel-udp lab exec{option} h1 -- ip"
    if lab.plan.backend == ALLOC and (routes := routes_from(lab, lab.hosts[0])):
        sys.stdout.write("\nalloc leaves the routes between the hosts to you. On each host, as on h1:\n")
        sys.stdout.write("".join(f"     {on_h1} {route}\n" for route in routes))
    sys.stdout.write(f"\ntry: {on_h1} route\n     flannel-udp lab down{option}\n")
    return 0


def _status(args: argparse.Namespace) -> int:
    lab = Lab.attach(args.name)
    if args.json:
        sys.stdout.write(json.dumps(lab.status(), indent=2) + "\n")
    else:
        _show(lab)
    return 0


def _show(lab: Lab) -> None:
    table = Table(title=f"lab {lab.name}", title_justify="left", box=None, pad_edge=False)
    for heading in ("host", "underlay", "subnet", "backend", "agent", "pods"):
        table.add_column(heading)
    for host in lab.hosts:
        pid = host.agent_pid()
        state = "-" if pid is None else f"{'ready' if host.is_ready() else 'not ready'} (process {pid})"
        pods = "\n".join(f"{name} {address}" for name, address in host.pod_addresses().items())
        table.add_row(host.name, str(host.underlay), str(host.subnet or "-"), host.backend or "-", state, pods or "-")
    Console().print(table)


def _exec(args: argparse.Namespace) -> int:
    node = Lab.attach(args.name).node(args.node)
    sys.stdout.flush()
    os.execvp("ip", ["ip", "netns", "exec", node.namespace, *args.command])  # noqa: S606 - shell-free on purpose


def _logs(args: argparse.Namespace) -> int:
    host = Lab.attach(args.name).host(args.host)
    if not host.log_file.exists():
        raise FlannelError(f"{host.name}: no agent of ours was started here")
    with host.log_file.open(errors="replace") as log:
        shutil.copyfileobj(log, sys.stdout)
    return 0


def _down(args: argparse.Namespace) -> int:
    names = lab_names() if args.all else [args.name]
    removed, faults = [], []
    with _progress():
        for name in names:
            try:
                if remove(name):
                    removed.append(name)
            except FlannelError as error:  # the others go all the same
                faults.append(error)
    if faults:
        raise faults[0]
    if not removed and not args.all:
        raise FlannelError(f"no lab named {args.name} is up: `ip netns` lists what there is")
    sys.stdout.write(f"removed: {', '.join(removed)}\n" if removed else "no lab is up\n")
    return 0


def _demo(args: argparse.Namespace) -> int:
    width = shutil.get_terminal_size((100, 24)).columns
    with _progress(), _interruptible():
        complete = run_demo(_plan(args), sys.stdout, width)
    if not complete:
        raise FlannelError("a ping was lost: see the matrix above")
    return 0


ACTIONS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "up": _up,
    "status": _status,
    "exec": _exec,
    "logs": _logs,
    "down": _down,
    "demo": _demo,
}


def _plan(args: argparse.Namespace) -> Plan:
    config: dict[str, Any] = {"Network": str(OVERLAY)}
    if args.backend is not None:
        config["Backend"] = {"Type": args.backend}
    return Plan(name=args.name, hosts=args.hosts, pods=args.pods, registry=args.registry, config=config)


@contextmanager
def _progress() -> Iterator[None]:
    """Let the library say on stderr what it is doing."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("lab: %(message)s"))
    _LOGGER.addHandler(handler)
    _LOGGER.setLevel(logging.INFO)
    try:
        yield
    finally:
        _LOGGER.removeHandler(handler)


def _leave(number: int, _frame: FrameType | None) -> None:
    """Turn the first signal into an exception, so that the lab is taken down; ignore the next ones meanwhile."""
    for ignored in ENDING_SIGNALS:
        signal.signal(ignored, signal.SIG_IGN)
    raise SystemExit(128 + number)  # as a shell reports a death by signal


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let what would end us raise instead, inside the block only, so that a lab is taken down first."""
    before = {number: signal.signal(number, _leave) for number in ENDING_SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
