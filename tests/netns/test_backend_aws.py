"""aws-vpc from end to end: hosts of a lab in a VPC whose route table a router in the middle goes by."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import Plan
from tests.support.agents import Agent, command_json, command_line, links_of, wait_for, wait_for_peers, wait_for_pings
from tests.support.by_hand import by_hand
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import promised
from tests.support.vpc import Vpc, interface_of
from tests.support.vpc_router import vpc_around

pytestmark = NEEDS_NETNS

SUBNETS = {"10.244.1.0/24": "192.0.2.1", "10.244.2.0/24": "192.0.2.2", "10.244.3.0/24": "192.0.2.3"}
"""Reserved: the first host has the lowest subnet, so it is the one that removes what is stale."""
HURRIED = """
import sys
from flannel_udp.agent import agent
from flannel_udp.backend.cloud import keeper
from flannel_udp.cli.main import main
keeper.GRACE_S, keeper.LOOK_S = 3.0, (0.5, 1.0)
agent.END_TIMEOUT_S = 60.0
sys.exit(main(sys.argv[1:]))
"""
"""An agent that looks often, waits but a moment, and has time to end on a busy machine."""


@dataclass(frozen=True)
class Cluster:
    lab: Lab
    vpc: Vpc
    interfaces: dict[str, str]
    """By host."""

    def start(self, host: Host, *arguments: str, hurried: bool = False) -> Agent:
        """Start an agent whose SDK knows no more than an instance's would, but for where EC2's API is."""
        environment = {"AWS_ENDPOINT_URL_EC2": self.vpc.url, "AWS_CONFIG_FILE": "/nonexistent", "HOME": "/nonexistent"}
        program = ("-c", HURRIED) if hurried else ("-P", "-m", "flannel_udp")
        return Agent(host, *arguments, environment=environment, program=program)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    plan = Plan(fresh_name(), hosts=3, agents=(), reservations=SUBNETS)
    with Lab(plan) as lab, vpc_around(lab) as (vpc, said):
        by_hand(lab).choose_backend("aws-vpc")
        yield Cluster(lab, vpc, {host.name: interface_of(said[host]) for host in lab.hosts})


@pytest.fixture(scope="module")
def running(cluster: Cluster) -> Iterator[dict[str, Agent]]:
    """An agent on each host; the first one is hurried."""
    with ExitStack() as stack:
        agents = {
            host.name: stack.enter_context(cluster.start(host, hurried=host.name == "h1")) for host in cluster.lab.hosts
        }
        for name, agent in agents.items():
            agent.wait_ready()
            cluster.lab.host(name).attach_pods()
        wait_for_peers(cluster.lab.hosts)
        yield agents


def led(cluster: Cluster) -> dict[str, str]:
    """Return where each host's subnet has to be led."""
    return dict(zip(SUBNETS, cluster.interfaces.values(), strict=True))


def test_pods_reach_each_other_by_the_provider_s_routes_and_nothing_else(
    cluster: Cluster, running: dict[str, Agent]
) -> None:
    assert cluster.vpc.routes() == led(cluster)
    assert all(cluster.vpc.may_forward(interface) for interface in cluster.interfaces.values())
    wait_for_pings(cluster.lab)
    for host in cluster.lab.hosts:
        assert links_of(host) == []
        status = host.control("/v1/status")
        assert (status["problems"], status["backend"]["type"]) == ([], "aws-vpc")
        assert host.mtu == status["interface"]["mtu"]
    values = [json.loads(value) for value in by_hand(cluster.lab).subnets().values()]
    assert [set(value) & {"BackendType", "BackendData"} for value in values] == [set()] * 3


def test_a_route_that_is_deleted_behind_our_back_returns_within_90_s(
    cluster: Cluster, running: dict[str, Agent]
) -> None:
    cluster.vpc.unlead("10.244.2.0/24")  # of a host whose agent has its usual pace
    wait_for("it is back", lambda: cluster.vpc.routes() == led(cluster), promised(90.0))
    host = cluster.lab.host("h2")
    wait_for("it is counted", lambda: host.control("/v1/status")["host_repairs"]["route"] == 1)
    wait_for_pings(cluster.lab)


def test_a_foreign_route_stays_and_the_command_says_what_each_route_is(
    cluster: Cluster, running: dict[str, Agent]
) -> None:
    host, appliance = cluster.lab.host("h1"), interface_of(cluster.vpc.add_host("192.0.2.77"))
    cluster.vpc.lead("10.244.77.0/24", appliance)

    def rows() -> dict[str, Any]:
        return {row["destination"]: row for row in command_json(host, "cloud", "routes")["routes"]}

    wait_for("it was looked at", lambda: "10.244.77.0/24" in rows())
    found = rows()
    assert {at: row["verdict"] for at, row in found.items()} == {
        "10.244.1.0/24": "own",
        "10.244.2.0/24": "peer",
        "10.244.3.0/24": "peer",
        "10.244.77.0/24": "unknown",
    }
    assert {row["action"] for row in found.values()} == {None}
    shown = command_line(host, "cloud", "routes")
    assert shown.returncode == 0, shown.stderr
    assert "the host that removes routes of hosts that are gone: this one" in shown.stdout
    assert cluster.interfaces["h1"] in shown.stdout
    cluster.vpc.unlead("10.244.77.0/24")


def test_the_route_of_a_killed_host_whose_lease_is_gone_goes_and_comes_back_with_it(
    cluster: Cluster, running: dict[str, Agent]
) -> None:
    hand, h1, h3 = by_hand(cluster.lab), cluster.lab.host("h1"), cluster.lab.host("h3")
    running["h3"].process.kill()
    assert running["h3"].exit_code() != 0
    assert "10.244.3.0/24" in cluster.vpc.routes()
    foreign = interface_of(cluster.vpc.add_host("192.0.2.78"))
    cluster.vpc.lead("10.244.78.0/24", foreign)
    value = hand.subnets()["10.244.3.0-24"]
    hand.delete("10.244.3.0-24")

    def verdict() -> str | None:
        rows = command_json(h1, "cloud", "routes")["routes"]
        return next((row["verdict"] for row in rows if row["destination"] == "10.244.3.0/24"), None)

    wait_for("it is stale, or gone", lambda: verdict() in ("stale", None))
    wait_for("it is gone", lambda: "10.244.3.0/24" not in cluster.vpc.routes())
    assert cluster.vpc.routes()["10.244.78.0/24"] == foreign
    cluster.vpc.unlead("10.244.78.0/24")
    hand.put("10.244.3.0-24", value)
    with cluster.start(h3) as again:
        again.wait_ready()
        assert cluster.vpc.routes() == led(cluster)
        wait_for_pings(cluster.lab)
        assert again.stop() == 0
    assert cluster.vpc.routes() == led(cluster)  # at an ordinary end the route stays, and pods go on


def test_with_release_on_exit_the_route_goes(cluster: Cluster, running: dict[str, Agent]) -> None:
    assert running["h2"].stop() == 0
    host = cluster.lab.host("h2")
    with cluster.start(host, "--release-on-exit", hurried=True) as agent:
        agent.wait_ready()
        assert "10.244.2.0/24" in cluster.vpc.routes()
        assert agent.stop() == 0
    assert "10.244.2.0/24" not in cluster.vpc.routes()


def test_a_foreign_route_in_our_place_is_waited_for_and_nothing_is_written_for_pods(cluster: Cluster) -> None:
    foreign = interface_of(cluster.vpc.add_host("192.0.2.79"))
    host = cluster.lab.host("h2")
    host.subnet_file.unlink(missing_ok=True)
    hand = by_hand(cluster.lab)
    for key in [key for key, value in hand.subnets().items() if json.loads(value)["PublicIP"] == str(host.underlay)]:
        hand.delete(key)
    hand.put("10.244.2.0-24", json.dumps({"PublicIP": str(host.underlay)}))
    cluster.vpc.lead("10.244.2.0/24", foreign)
    with cluster.start(host, hurried=True) as agent:
        line = agent.wait_for_line("no traffic: ")
        assert line == (
            f"no traffic: {cluster.vpc.main} leads our subnet 10.244.2.0/24 to {foreign}: that route is not ours, and "
            "is left alone: remove it if nobody needs it"
        )
        assert not host.subnet_file.exists()
        assert not host.is_ready()
        cluster.vpc.unlead("10.244.2.0/24")
        agent.wait_ready()
        assert cluster.vpc.routes()["10.244.2.0/24"] == cluster.interfaces["h2"]
        assert agent.stop() == 0


def test_without_a_metadata_service_the_configuration_is_waited_with_and_nothing_is_written(cluster: Cluster) -> None:
    hand, host = by_hand(cluster.lab), cluster.lab.host("h2")
    entries, routes = hand.subnets(), cluster.vpc.routes()
    host.subnet_file.unlink(missing_ok=True)
    host.configure("route add prohibit 169.254.169.253/32")
    environment = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://169.254.169.253"}
    with Agent(host, environment=environment) as agent:
        line = agent.wait_for_line("reading the network configuration failed: ")
        assert "no metadata service at http://169.254.169.253: " in line
        assert "is this an EC2 instance, and its metadata service on?" in line
        assert host.control("/v1/status")["state"] == "waiting for configuration"
        assert agent.stop() == 0
    assert (hand.subnets(), cluster.vpc.routes(), host.subnet_file.exists()) == (entries, routes, False)
    host.configure("route del prohibit 169.254.169.253/32")
