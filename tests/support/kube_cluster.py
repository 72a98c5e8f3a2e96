"""A lab whose agents have Kubernetes' API server as their registry."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import UNDERLAY_GATEWAY, Plan
from tests.kube_api.manifest import RULES
from tests.kube_api.server import ApiServer
from tests.support.agents import Agent
from tests.support.labs import fresh_name

PORT = 6443
STREAM = (socket.AF_INET, socket.SOCK_STREAM)


class Cluster:
    """A lab without agents, and the API server on its underlay, with the rights that our manifest gives."""

    def __init__(self, lab: Lab, api: ApiServer, net_conf: Path) -> None:
        self.lab = lab
        self.api = api
        self._net_conf = net_conf

    def agent(self, host: Host, *arguments: str, wrapper: Sequence[str] = (), **environment: str) -> Agent:
        """Start the agent as node HOST would."""
        flags = ("--kube-subnet-mgr", "--kube-api-url", self.api.url, "--net-config-path", str(self._net_conf))
        return Agent(host, *flags, *arguments, wrapper=wrapper, environment={"NODE_NAME": host.name, **environment})


@contextmanager
def cluster(tmp_path: Path, hosts: int = 2, backend: str = "udp") -> Iterator[Cluster]:
    """Yield nodes h1, h2, ... of which none runs an agent yet; node N has the subnet 10.244.N-1.0/24."""
    net_conf = tmp_path / "net-conf.json"
    net_conf.write_text(json.dumps({"Network": "10.244.0.0/16", "Backend": {"Type": backend}}))
    with Lab(Plan(fresh_name(), hosts=hosts, agents=())) as lab, lab.net.socket(*STREAM) as listener:
        listener.bind((str(UNDERLAY_GATEWAY), PORT))
        listener.listen()
        with ApiServer(listener, rules=RULES) as api:
            for number, host in enumerate(lab.hosts):
                api.add_node(host.name, f"10.244.{number}.0/24")
            yield Cluster(lab, api, net_conf)
