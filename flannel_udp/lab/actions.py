"""What the commands of `flannel-udp lab` do: results to stdout, progress to stderr."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle
from types import FrameType
from typing import Any

from rich.console import Console
from rich.table import Table

from flannel_udp.errors import FlannelError, UsageError
from flannel_udp.lab.by_hand import ALLOC, routes_from
from flannel_udp.lab.demo import run_demo
from flannel_udp.lab.lab import ENDING_SIGNALS, Lab, lab_names, remove
from flannel_udp.lab.plan import OVERLAY, Plan

_DATAPATHS = ("auto", "kernel", "userspace")

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
        underlay = "\n".join(str(host.underlay_of(version)) for version in lab.plan.versions)
        subnet = "\n".join(map(str, host.prefixes))
        pods = "\n".join(
            f"{pod.name} {address}"
            for pod in host.pods
            for version in lab.plan.versions
            if (address := pod.known_address(version)) is not None
        )
        table.add_row(host.name, underlay, subnet or "-", host.backend or "-", state, pods or "-")
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
    plan = Plan(
        name=args.name,
        hosts=args.hosts,
        pods=args.pods,
        registry=args.registry,
        config=config,
        families=args.families,
    )
    if not 0 <= args.routed < plan.hosts:
        raise UsageError(f"--routed {args.routed}: of {plan.hosts} hosts 0 to {plan.hosts - 1} can be behind a router")
    names = plan.host_names
    return replace(plan, host_args=_datapaths(names, args.datapath), routed=tuple(names[plan.hosts - args.routed :]))


def _datapaths(hosts: Sequence[str], text: str | None) -> dict[str, tuple[str, ...]]:
    """Return the argument of each host's agent; a list goes round."""
    if text is None:
        return {}
    given = text.split(",")
    unknown = [datapath for datapath in given if datapath not in _DATAPATHS]
    if unknown:
        raise UsageError(f"--datapath {text}: {unknown[0]!r} is none of {', '.join(_DATAPATHS)}")
    return {host: (f"--datapath={datapath}",) for host, datapath in zip(hosts, cycle(given), strict=False)}


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
