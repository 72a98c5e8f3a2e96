"""Several workers share one tunnel device and one port, and traffic is the same."""

from __future__ import annotations

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import AGENT_TIMEOUT_S
from flannel_udp.lab.plan import Plan, parse_subnet_env
from flannel_udp.lab.probe import ping_matrix, tcp_rate
from tests.support.labs import NEEDS_NETNS, fresh_name

pytestmark = NEEDS_NETNS


def test_pods_reach_each_other_through_two_workers_on_each_host() -> None:
    with Lab(Plan(fresh_name(), hosts=2, agents=())) as lab:
        for host in lab.hosts:
            host.start_agent("--workers", "2")
        for host in lab.hosts:
            host.wait_ready(AGENT_TIMEOUT_S)
        envs = [parse_subnet_env(host.subnet_file.read_text()) for host in lab.hosts]
        for host, own, other in zip(lab.hosts, envs, reversed(envs), strict=True):
            host.wait_peers({other.subnet})
            host.attach_pods(own.subnet, own.mtu)
        first, second = lab.pods()
        assert None not in ping_matrix([first, second]).values()
        assert tcp_rate(first, second, second.ip, duration_s=0.3) > 0
        for host in lab.hosts:
            status = host.control("/v1/status")
            assert status["workers"] == 2
            assert (status["counters"]["out"]["drops"], status["counters"]["in"]["drops"]) == ({}, {})
