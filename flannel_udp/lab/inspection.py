"""What there is of labs, for programs: all in short, or one with its processes, namespaces, ports and agents."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from flannel_udp.errors import FlannelError
from flannel_udp.lab import netns
from flannel_udp.lab.faults import present_faults
from flannel_udp.lab.lab import Lab, lab_names
from flannel_udp.lab.node import Host, Node
from flannel_udp.lab.plan import Plan


def list_labs() -> list[dict[str, Any]]:
    """Return a row for each lab of this machine; what is not known of one that is half-made is null."""
    netns.require()
    return [_row(name) for name in lab_names()]


def _row(name: str) -> dict[str, Any]:
    plan = None
    with suppress(FlannelError):  # another version's
        plan = Plan.load(name)
    if plan is None:
        return {
            "name": name,
            "whole": False,
            "hosts": None,
            "pods": None,
            "backend": None,
            "registry": None,
            "agents": None,
        }
    running = sum(Host(plan, host).agent_pid() is not None for host in plan.agent_hosts)
    return {
        "name": name,
        "whole": True,
        "hosts": plan.hosts,
        "pods": plan.hosts * plan.pods,
        "backend": plan.backend,
        "registry": plan.registry,
        "agents": {"planned": len(plan.agent_hosts), "running": running},
    }


def inspect(lab: Lab) -> dict[str, Any]:
    """Return all that there is of a lab."""
    nodes: list[Node] = [lab.net, *lab.routers, *lab.hosts, *lab.pods()]
    said = {node["name"]: node for kind in ("routers", "hosts") for node in lab.status()[kind]}
    inside: dict[str, list[int]] = {node.namespace: [] for node in nodes}
    for pid, namespace in sorted(netns.processes(inside).items()):
        inside[namespace].append(pid)
    return {
        "name": lab.name,
        "folder": str(lab.plan.state),
        "plan": dataclasses.asdict(lab.plan),
        "faults": present_faults(lab),
        "net": {
            **_node(lab.net, inside),
            "addresses": [str(lab.plan.bridge(version)) for version in lab.plan.versions],
        },
        "routers": [{**_node(router, inside), **said[router.name]} for router in lab.routers],
        "hosts": [
            {
                **_node(host, inside),
                "behind": said[host.name]["behind"],
                "link": said[host.name]["link"],
                "addresses": [str(host.underlay_of(version)) for version in lab.plan.versions],
                "subnets": [str(prefix) for prefix in host.prefixes],
                "agent": _agent(host),
                "pods": [
                    {
                        **_node(pod, inside),
                        "addresses": [str(ip) for version in lab.plan.versions if (ip := pod.known_address(version))],
                    }
                    for pod in host.pods
                ],
            }
            for host in lab.hosts
        ],
    }


def _node(node: Node, inside: Mapping[str, list[int]]) -> dict[str, Any]:
    processes = [{"pid": pid, "command": command} for pid in inside[node.namespace] if (command := _command(pid))]
    return {
        "name": node.path,
        "hostname": node.hostname,
        "namespace": node.namespace,
        "processes": processes,
        "ports": _ports(node),
    }


def _command(pid: int) -> str:
    """Return a process's command line; nothing if it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def _ports(node: Node) -> list[dict[str, Any]]:
    """Return what is listened on inside (ss(8)): protocol, address and port."""
    found = set()  # the data threads share a port
    for line in node.run(["ss", "-Hlntu"]).stdout.splitlines():
        protocol, _, _, _, local, *_ = line.split()
        address, _, port = local.rpartition(":")
        found.add((protocol, address.strip("[]"), int(port)))
    return [{"protocol": protocol, "address": address, "port": port} for protocol, address, port in sorted(found)]


def _agent(host: Host) -> dict[str, Any] | None:
    """Return what there is of a host's agent, with what it says of itself; ``None`` where none is planned."""
    if not host.runs_agent:
        return None
    status = None
    with suppress(FlannelError):
        status = host.control("/v1/status")
    return {
        "pid": host.agent_pid(),
        "control_socket": str(host.control_socket),
        "subnet_file": str(host.subnet_file),
        "log": str(host.log_file),
        "status": status,
    }
