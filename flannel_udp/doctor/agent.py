"""What the agent says of itself, and whether the files that it keeps say the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from flannel_udp.admin.shapes import Status
from flannel_udp.doctor.finding import Finding, fault, fault_of, ok, skipped
from flannel_udp.doctor.known import Known
from flannel_udp.files.subnet_env import SubnetEnv
from flannel_udp.options import Options

_SUM_OF_PEERS = ": see flannel-udp peers"
_AWAY = "the registry is away"
_OF_THE_REGISTRY = ("no etcd endpoint answers: ", "etcd at ", "registry file ")
_NO_CONFIG = " holds no network configuration"
_MEND_REGISTRY = "mend the registry, or the way to it"


def judge_agent(known: Known) -> Iterator[Finding]:
    """Judge whether the agent runs and is ready, and yield a fault for each problem that it knows of."""
    status = known.status
    if status is None:
        mend = "systemctl start flannel-udp" if known.absent else ""
        yield fault("agent", known.silence, mend)
        return
    health = "ready" if status["ready"] else "not ready"
    if status["ready"] and status["degraded"]:
        health = "degraded"
    text = f"flannel-udp {status['version']}, process {status['pid']}, {status['state']} ({health})"
    yield ok("agent", text) if status["ready"] else fault("agent", text, "journalctl -u flannel-udp")
    ill = {peer["problem"] for peer in known.peers if peer["problem"]}
    for problem in status["problems"]:
        if not problem.startswith(_AWAY) and not _is_of_peers(problem, ill):
            yield fault_of("agent", problem)


def _is_of_peers(problem: str, ill: set[str]) -> bool:
    """Tell whether the question about the peers names it, too: each of them, and how many more there are."""
    return bool(ill) and (problem.endswith((*ill, _SUM_OF_PEERS)))


def judge_registry(known: Known, options: Options) -> Finding:
    """Judge whether the network configuration can be read; a running agent has read it."""
    status = known.status
    if status is not None:
        return _judge_agents_registry(status)
    if known.config is None:
        return fault(
            "registry", f"{options.registry}: {known.config_fault}", "correct the registry's flags, or mend it"
        )
    return ok(
        "registry",
        f"{options.registry} has the network {' and '.join(map(str, known.config.overlays))}, backend {known.backend}",
    )


def _judge_agents_registry(status: Status) -> Finding:
    for problem in status["problems"]:
        if problem.startswith(_AWAY):
            return fault("registry", f"{status['registry']}: {problem}", _MEND_REGISTRY)
    wrong = status.get("last_errors", {}).get("configuration")  # an older agent has none
    if wrong is not None and not wrong["over"]:
        return fault("registry", f"{status['registry']}: {wrong['text']}", _mend_of_config(status, wrong["text"]))
    networks = " and ".join(filter(None, (status["network"], status["ipv6_network"])))
    if not networks:
        what = f"{status['registry']}: the agent has no network configuration yet"
        return fault("registry", what, _mend_of_config(status))
    return ok("registry", f"{status['registry']}, the network is {networks}")


def _mend_of_config(status: Status, wrong: str = "") -> str:
    """Return what helps where there is no network configuration for the agent, or a wrong one, as it says."""
    if status["registry"] == "kubernetes":
        return "correct the ConfigMap that is mounted at --net-config-path, by kubectl"
    if wrong.startswith(_OF_THE_REGISTRY) and _NO_CONFIG not in wrong:
        return _MEND_REGISTRY
    return "flannel-udp config put"


def judge_subnet_file(known: Known, path: Path) -> Finding:
    """Judge whether subnet.env says what the agent has: container runtimes read nothing else."""
    question, status, env = "subnet file", known.status, known.env
    if known.env_fault:
        return fault(question, known.env_fault, f"rm {path}: the agent writes it anew")
    if env is None:
        if status is not None and status["subnet"] is None and status["ipv6_subnet"] is None:
            return skipped(question, "the agent has no subnet yet")
        return fault(
            question, f"there is no {path}, so that no pod can be started", "start the agent, or --subnet-file"
        )
    what = f"{path}: subnet {env.subnet} of {' and '.join(map(str, env.networks))}, MTU {env.mtu}"
    contradiction = None if status is None else _contradiction(env, status)
    return fault(question, f"{what}, but {contradiction[0]}", contradiction[1]) if contradiction else ok(question, what)


def _contradiction(env: SubnetEnv, status: Status) -> tuple[str, str] | None:
    """Return what the agent says otherwise, and what mends it."""
    subnets, networks = (status["subnet"], status["ipv6_subnet"]), (status["network"], status["ipv6_network"])
    if not any(subnets):
        return None
    said = tuple(subnet and str(subnet) for subnet in (env.subnet.v4, env.subnet.v6))
    of = tuple(network and str(network) for network in (env.network, env.ipv6_network))
    theirs = tuple(network for subnet, network in zip(subnets, networks, strict=True) if subnet)
    if said != subnets or tuple(filter(None, of)) != theirs:
        mend = "name the agent's --subnet-file, or restart it"
        return f"the agent has {' and '.join(filter(None, subnets))} of {' and '.join(filter(None, networks))}", mend
    tunnel = status["tunnel"] or status["ipv6_tunnel"]
    if tunnel is not None and env.mtu != tunnel["mtu"]:
        return f"{tunnel['name']} has MTU {tunnel['mtu']}", "restart the agent, then start the pods anew"
    return None
