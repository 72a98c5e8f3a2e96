"""What each provider's backend is to show from end to end: hosts of a lab, and a router in the middle that goes by the
provider's routes. A provider's test module has the fixtures `cluster` and `running`, and its own class of `Promised`:

    @pytest.fixture(scope="module")
    def cluster() -> Iterator[Cluster]:
        with cluster_in(gce_around) as cluster:
            yield cluster

    @pytest.fixture(scope="module")
    def running(cluster: Cluster) -> Iterator[dict[str, Agent]]:
        with agents_on(cluster) as agents:
            yield agents

    class TestGce(Promised):
        pass

The first host has the lowest subnet, so it is the one that removes what is stale; the last one is killed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import Plan
from tests.support.agents import Agent, command_json, command_line, links_of, wait_for, wait_for_peers, wait_for_pings
from tests.support.by_hand import by_hand
from tests.support.labs import fresh_name
from tests.support.patience import promised

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


class Cloud(Protocol):
    """A provider's test server around a lab, by an administrator's hand. Destinations and targets are as it has them:
    ``10.244.1.0/24``, and the provider's name of what a route leads to."""

    @property
    def type(self) -> str:
        """`Backend.Type`."""
        ...

    @property
    def environment(self) -> Mapping[str, str]:
        """What tells an agent's SDK where the API is, and nothing that a host's own metadata service would."""
        ...

    @property
    def targets(self) -> tuple[str, ...]:
        """What a route to each of the lab's hosts leads to."""
        ...

    @property
    def table(self) -> str:
        """The route table's name, as the agent says it."""
        ...

    def stranger(self, address: str) -> str:
        """Start a host of which no agent knows, and return what a route to it leads to."""
        ...

    def routes(self) -> dict[str, str]:
        """Return the table's routes, but for the provider's own: destination → target."""
        ...

    def lead(self, destination: str, target: str) -> None:
        """Make a route."""
        ...

    def unlead(self, destination: str) -> None:
        """Delete a route."""
        ...

    def led(self) -> dict[str, str]:
        """Return which destination leads to which address now: what the router follows."""
        ...


@dataclass(frozen=True)
class Cluster:
    lab: Lab
    cloud: Cloud

    @property
    def wanted(self) -> dict[str, str]:
        """Where each host's subnet has to be led."""
        return dict(zip(subnets_of(len(self.lab.hosts)), self.cloud.targets, strict=True))

    def start(self, host: Host, *arguments: str, hurried: bool = True) -> Agent:
        """Start an agent whose SDK knows no more than a host's would, but for where the API is."""
        program = ("-c", HURRIED) if hurried else ("-P", "-m", "flannel_udp")
        return Agent(host, *arguments, environment=self.cloud.environment, program=program)


def subnets_of(hosts: int) -> dict[str, str]:
    """Return the subnets that so many hosts have: reserved, by their addresses."""
    return {f"10.244.{number}.0/24": f"192.0.2.{number}" for number in range(1, hosts + 1)}


@contextmanager
def cluster_in(around: Callable[[Lab], AbstractContextManager[Cloud]], hosts: int = 2) -> Iterator[Cluster]:
    """Have a lab in a provider's network for the block."""
    plan = Plan(fresh_name(), hosts=hosts, agents=(), reservations=subnets_of(hosts))
    with Lab(plan) as lab, around(lab) as cloud:
        by_hand(lab).choose_backend(cloud.type)
        yield Cluster(lab, cloud)


@contextmanager
def agents_on(cluster: Cluster, unhurried: frozenset[str] = frozenset()) -> Iterator[dict[str, Agent]]:
    """Have an agent on each host for the block, but for what the scenario does to them; all know each other."""
    with ExitStack() as stack:
        agents = {
            host.name: stack.enter_context(cluster.start(host, hurried=host.name not in unhurried))
            for host in cluster.lab.hosts
        }
        for name, agent in agents.items():
            agent.wait_ready()
            cluster.lab.host(name).attach_pods()
        wait_for_peers(cluster.lab.hosts)
        yield agents


def has_no_problem(host: Host) -> bool:
    """Tell whether its agent has nothing to say of what does not work."""
    problems: list[str] = host.control("/v1/status")["problems"]
    return problems == []


class Promised:
    """The tests, in the order in which they are to be run: a provider's module has a class made from it."""

    @pytest.mark.usefixtures("running")
    def test_pods_reach_each_other_by_the_provider_s_routes_and_nothing_else(self, cluster: Cluster) -> None:
        assert cluster.cloud.routes() == cluster.wanted
        wait_for_pings(cluster.lab)
        for host in cluster.lab.hosts:
            assert links_of(host) == []
            # A peer's route may not have been there yet at the last two looks.
            wait_for(f"{host.name} has no problem", partial(has_no_problem, host))
            status = host.control("/v1/status")
            assert status["backend"]["type"] == cluster.cloud.type
            assert host.mtu == status["interface"]["mtu"]
        values = [json.loads(value) for value in by_hand(cluster.lab).subnets().values()]
        assert [set(value) & {"BackendType", "BackendData"} for value in values] == [set()] * len(values)

    @pytest.mark.usefixtures("running")
    def test_a_route_that_is_deleted_behind_our_back_returns_within_90_s(self, cluster: Cluster) -> None:
        host = cluster.lab.hosts[1]
        cluster.cloud.unlead(str(host.subnet))
        wait_for("it is back", lambda: cluster.cloud.routes() == cluster.wanted, promised(90.0))
        wait_for("it is counted", lambda: host.control("/v1/status")["host_repairs"]["route"] == 1)
        wait_for_pings(cluster.lab)

    @pytest.mark.usefixtures("running")
    def test_a_foreign_route_stays_and_the_command_says_what_each_route_is(self, cluster: Cluster) -> None:
        host, appliance = cluster.lab.hosts[0], cluster.cloud.stranger("192.0.2.77")
        cluster.cloud.lead("10.244.77.0/24", appliance)

        def rows() -> dict[str, Any]:
            return {row["destination"]: row for row in command_json(host, "cloud", "routes")["routes"]}

        wait_for("it was looked at", lambda: "10.244.77.0/24" in rows())
        found = rows()
        own, *others = cluster.wanted
        assert {at: row["verdict"] for at, row in found.items()} == {
            own: "own",
            **dict.fromkeys(others, "peer"),
            "10.244.77.0/24": "unknown",
        }
        assert {row["action"] for row in found.values()} == {None}
        shown = command_line(host, "cloud", "routes")
        assert shown.returncode == 0, shown.stderr
        assert "the host that removes routes of hosts that are gone: this one" in shown.stdout
        assert cluster.cloud.targets[0] in shown.stdout
        cluster.cloud.unlead("10.244.77.0/24")

    def test_the_route_of_a_killed_host_whose_lease_is_gone_goes_and_comes_back_with_it(
        self, cluster: Cluster, running: dict[str, Agent]
    ) -> None:
        hand, cloud, cleaner, killed = by_hand(cluster.lab), cluster.cloud, cluster.lab.hosts[0], cluster.lab.hosts[-1]
        at = str(killed.subnet)
        running[killed.name].process.kill()
        assert running[killed.name].exit_code() != 0
        assert at in cloud.routes()
        foreign = cloud.stranger("192.0.2.78")
        cloud.lead("10.244.78.0/24", foreign)
        key = at.replace("/", "-")
        value = hand.subnets()[key]
        hand.delete(key)

        def verdict() -> str | None:
            rows = command_json(cleaner, "cloud", "routes")["routes"]
            return next((row["verdict"] for row in rows if row["destination"] == at), None)

        wait_for("it is stale, or gone", lambda: verdict() in ("stale", None))
        wait_for("it is gone", lambda: at not in cloud.routes())
        assert cloud.routes()["10.244.78.0/24"] == foreign
        cloud.unlead("10.244.78.0/24")
        hand.put(key, value)
        with cluster.start(killed) as again:
            again.wait_ready()
            assert cloud.routes() == cluster.wanted
            wait_for_pings(cluster.lab)
            assert again.stop() == 0
        assert cloud.routes() == cluster.wanted  # at an ordinary end the route stays, and pods go on

    def test_with_release_on_exit_the_route_goes(self, cluster: Cluster, running: dict[str, Agent]) -> None:
        host = cluster.lab.hosts[1]
        if running[host.name].process.poll() is None:
            assert running[host.name].stop() == 0
        with cluster.start(host, "--release-on-exit") as agent:
            agent.wait_ready()
            at = str(host.subnet)
            assert at in cluster.cloud.routes()
            assert agent.stop() == 0
        wait_for("the provider has done it", lambda: at not in cluster.cloud.routes())

    def test_a_foreign_route_in_our_place_is_waited_for_and_nothing_is_written_for_pods(self, cluster: Cluster) -> None:
        cloud, hand, host = cluster.cloud, by_hand(cluster.lab), cluster.lab.hosts[1]
        foreign, at = cloud.stranger("192.0.2.79"), list(cluster.wanted)[1]
        host.subnet_file.unlink(missing_ok=True)
        for key in [
            key for key, value in hand.subnets().items() if json.loads(value)["PublicIP"] == str(host.underlay)
        ]:
            hand.delete(key)
        hand.put(at.replace("/", "-"), json.dumps({"PublicIP": str(host.underlay)}))
        cloud.lead(at, foreign)
        with cluster.start(host) as agent:
            line = agent.wait_for_line("no traffic: ")
            assert line == (
                f"no traffic: {cloud.table} leads our subnet {at} to {foreign}: that route is not ours, and "
                "is left alone: remove it if nobody needs it"
            )
            assert not host.subnet_file.exists()
            assert not host.is_ready()
            cloud.unlead(at)
            agent.wait_ready()
            assert cloud.routes()[at] == cluster.wanted[at]
            assert agent.stop() == 0


def without_a_metadata_service_the_configuration_is_waited_with_and_nothing_is_written(
    cluster: Cluster, environment: Mapping[str, str], address: str
) -> str:
    """`environment` has the SDK ask for the metadata service at `address`, where none is; returns what was said."""
    hand, host = by_hand(cluster.lab), cluster.lab.hosts[1]
    entries, routes = hand.subnets(), cluster.cloud.routes()
    host.subnet_file.unlink(missing_ok=True)
    host.configure(f"route add prohibit {address}/32")
    with Agent(host, environment={**cluster.cloud.environment, **environment}) as agent:
        line = agent.wait_for_line("reading the network configuration failed: ")
        assert host.control("/v1/status")["state"] == "waiting for configuration"
        assert agent.stop() == 0
    assert (hand.subnets(), cluster.cloud.routes(), host.subnet_file.exists()) == (entries, routes, False)
    host.configure(f"route del prohibit {address}/32")
    return line
