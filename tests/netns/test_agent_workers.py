"""Several workers share one tunnel device and one port, and traffic is the same."""

from __future__ import annotations

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.plan import Plan
from flannel_udp.lab.probe import ping_matrix, tcp_rate
from tests.support.agents import start_agents
from tests.support.labs import NEEDS_NETNS, fresh_name

pytestmark = NEEDS_NETNS


def test_pods_reach_each_other_through_two_workers_on_each_host() -> None:
    with Lab(Plan(fresh_name(), hosts=2, agents=())) as lab:
        start_agents(lab.hosts, "--workers", "2")
        first, second = lab.pods()
        assert None not in ping_matrix([first, second]).values()
        assert tcp_rate(first, second, second.ip, duration_s=0.3) > 0
        for host in lab.hosts:
            status = host.control("/v1/status")
            assert status["workers"] == 2
            assert (status["counters"]["out"]["drops"], status["counters"]["in"]["drops"]) == ({}, {})
