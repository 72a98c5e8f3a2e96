"""Faults of a lab's agents and of its etcd, how they are put right, and which there are; cables' own are in `links`."""

from __future__ import annotations

from collections.abc import Callable

from flannel_udp.errors import FlannelError
from flannel_udp.lab import netns
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.links import Interfaces, interfaces_of, links_of, looked_at
from flannel_udp.lab.node import AGENT_TIMEOUT_S, Host, Node
from flannel_udp.lab.registry import Etcd


def host_with_agent(lab: Lab, name: str) -> Host:
    """Return the host of that name, which has an agent of ours by the plan. Raises `FlannelError`."""
    host = lab.host(name)
    if not host.runs_agent:
        raise FlannelError(f"{name} has no agent of ours in the lab {lab.name}")
    return host


def kill(host: Host) -> str:
    """End the agent as a crash does; return what was done."""
    pid = host.agent_pid()
    host.kill_agent()
    return f"{host.name}: the agent (process {pid}) was killed, and could clean up nothing"


def start(host: Host) -> str:
    """Start the agent, wait until it is ready, and see to its pods; return what was done."""
    host.start_agent()
    _wait_ready(host)
    return f"{host.name}: {_started(host)}"


def restart(host: Host) -> str:
    """End the agent as a service manager does, and start it again; return what was done."""
    former = host.agent_pid()
    host.stop_agent()
    host.start_agent()
    _wait_ready(host)
    return f"{host.name}: the agent (process {former}) was stopped; {_started(host)}"


def take_over(host: Host) -> str:
    """Let another agent take over from the one that runs; return what was done."""
    former = host.agent_pid()
    host.replace_agent(AGENT_TIMEOUT_S)
    return f"{host.name}: another agent (process {host.agent_pid()}) has taken over from process {former}"


def _wait_ready(host: Host) -> None:
    """Wait until the agent is ready. Raises `FlannelError`, one line: its log stays."""
    log = f"see: flannel-udp lab logs --name {host.plan.name} {host.name}"
    if netns.wait_until(lambda: host.is_ready() or host.agent_pid() is None, AGENT_TIMEOUT_S) and host.is_ready():
        return
    if host.agent_pid() is None:
        raise FlannelError(f"{host.name}: the agent has ended ({log})")
    try:
        state = host.control("/v1/status")["state"]
    except FlannelError:
        state = "it does not answer"
    raise FlannelError(f"{host.name}: the agent runs, and is not ready after {AGENT_TIMEOUT_S:g} s: {state} ({log})")


def _started(host: Host) -> str:
    moved = host.settle_pods()
    pods = f", and its pods have moved to {' and '.join(map(str, host.prefixes))}" if moved else ""
    return f"an agent runs (process {host.agent_pid()}){pods}"


def heal_agents(lab: Lab) -> list[str]:
    """Start every agent of the plan that does not run, and see to the pods of all; return what was wrong."""
    healed = []
    hosts = [host for host in lab.hosts if host.runs_agent]
    ended = [host for host in hosts if host.agent_pid() is None]
    for host in ended:
        host.start_agent()
    for host in hosts:
        _wait_ready(host)
        if host in ended:
            healed.append(f"{host.name}: {_started(host)}")
        elif host.settle_pods():
            healed.append(f"{host.name}: its pods have moved to {' and '.join(map(str, host.prefixes))}")
    return healed


def etcd_of(lab: Lab) -> Etcd:
    """Return the lab's etcd. Raises `FlannelError` where it has none."""
    if lab.plan.registry != "etcd":
        raise FlannelError(f"the lab {lab.name} has its leases in a file: make one with --registry etcd")
    return Etcd(lab.plan)


def stop_etcd(etcd: Etcd) -> str:
    """Stop it; return what was done."""
    etcd.stop()
    return "etcd: stopped; nothing that it held is lost"


def start_etcd(etcd: Etcd) -> str:
    """Start it again; return what was done."""
    return f"etcd: runs again (process {etcd.start()})"


def compact_etcd(etcd: Etcd) -> str:
    """Let it forget its history; return what was done."""
    return f"etcd: has forgotten what was before revision {etcd.compact()}; who was away then has to read all anew"


def present_faults(lab: Lab, look: Callable[[Node], Interfaces] = interfaces_of) -> dict[str, list[str]]:
    """Return in words what is not as the lab was built, by the node that it is at; nothing where all is well.

    `look` is who knows what a node's interfaces are like.
    """
    found: dict[str, list[str]] = {}
    for link, ends in looked_at(links_of(lab), look):
        if lines := link.faults(ends):
            found[link.name] = lines
    for host in lab.hosts:
        if host.runs_agent and host.agent_pid() is None:
            found.setdefault(host.name, []).append(f"the agent of {host.name} does not run")
    if lab.plan.registry == "etcd" and Etcd(lab.plan).pid() is None:
        found["net"] = ["etcd does not run"]
    return found


def heal_etcd(lab: Lab) -> list[str]:
    """Start the lab's etcd if it should run and does not; return what was wrong."""
    if lab.plan.registry != "etcd" or Etcd(lab.plan).pid() is not None:
        return []
    return [start_etcd(Etcd(lab.plan))]
