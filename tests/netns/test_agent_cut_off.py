"""An overlay network that holds the registry's address, or another host's: the agent must not cut itself off."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import ETCD_PORT, UNDERLAY_GATEWAY, Plan
from tests.support.agents import Agent, links_of, wait_for
from tests.support.by_hand import by_hand
from tests.support.labs import NEEDS_NETNS, fresh_name

pytestmark = [*NEEDS_NETNS, pytest.mark.usefixtures("needs_etcd")]

OVERLAY = "10.0.0.0/8"
SERVER = "10.9.9.9"
ENDPOINT = f"http://{SERVER}:{ETCD_PORT}"
OWN_ROUTE = f"{SERVER} via {UNDERLAY_GATEWAY} dev eth0"


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A host whose etcd is behind its default route, inside the overlay network."""
    backend, *reservations = getattr(request, "param", ["udp"])
    plan = Plan(
        fresh_name(),
        hosts=1,
        registry="etcd",
        config={"Network": OVERLAY, "Backend": {"Type": backend}},
        reservations=dict(reservations),
        agents=(),
    )
    with Lab(plan) as lab:
        lab.net.configure(f"address add {SERVER}/32 dev lo")
        relay = f"TCP-LISTEN:{ETCD_PORT},bind={SERVER},fork,reuseaddr"
        with lab.net.popen(["socat", relay, f"TCP:{UNDERLAY_GATEWAY}:{ETCD_PORT}"], stderr=subprocess.DEVNULL) as socat:
            try:
                yield lab
            finally:
                socat.kill()


def problems_of(host: Host) -> list[str]:
    problems: list[str] = host.control("/v1/status")["problems"]
    return problems


def routes_of(host: Host) -> str:
    return host.run(["ip", "-4", "route"]).stdout


def test_a_network_that_takes_the_registry_is_refused_before_its_route_is_set_until_there_is_one(lab: Lab) -> None:
    (host,) = lab.hosts
    with Agent(host, f"--etcd-endpoints={ENDPOINT}") as agent:
        line = agent.wait_for_line("would cut this host off")
        assert line == (
            f"reading the network configuration failed: the overlay network's route {OVERLAY} would cut this host off "
            f'from {SERVER}, the etcd endpoint {ENDPOINT}: the route "default via {UNDERLAY_GATEWAY} dev eth0 proto '
            f'boot" leads there now: choose another Network, or give it a route of its own: ip route add {OWN_ROUTE} '
            "(trying again every 1 to 5 s)"
        )
        assert links_of(host) == []
        assert OVERLAY not in routes_of(host)
        host.configure(f"route add {OWN_ROUTE}")
        agent.wait_ready()
        assert f"{OVERLAY} dev flannel0" in routes_of(host)
        assert len([said for said in agent.said() if "would cut this host off" in said and SERVER in said]) == 1
        assert problems_of(host) == []
        assert agent.stop() == 0


def test_a_rule_that_leads_to_the_registry_before_the_main_table_is_as_good_as_a_route(lab: Lab) -> None:
    (host,) = lab.hosts
    host.configure(f"rule add pref 100 to {SERVER} lookup 77", f"route add default via {UNDERLAY_GATEWAY} table 77")
    with Agent(host, f"--etcd-endpoints={ENDPOINT}") as agent:
        agent.wait_ready()
        assert problems_of(host) == []


def test_a_registry_whose_own_route_goes_away_later_is_named(lab: Lab) -> None:
    (host,) = lab.hosts
    host.configure(f"route add {OWN_ROUTE}")
    with Agent(host, f"--etcd-endpoints={ENDPOINT}") as agent:
        agent.wait_ready()
        host.configure(f"route del {OWN_ROUTE}")
        line = agent.wait_for_line(f"degraded: the etcd endpoint {ENDPOINT}")
        assert line == (
            f"degraded: the etcd endpoint {ENDPOINT}, {SERVER}, is inside the overlay network {OVERLAY}, "
            f"whose route leads to it: give it a route of its own: ip route add {SERVER} via GATEWAY"
        )
        status = host.control("/v1/status")
        assert (status["ready"], "cut_off" in status["degraded"]) == (True, True)
        host.configure(f"route add {OWN_ROUTE}")
        wait_for("it is well again", lambda: problems_of(host) == [])


@pytest.mark.parametrize("lab", [["host-gw"]], indirect=True)
def test_a_backend_with_a_route_for_each_peer_takes_no_more_than_may_be_leased(lab: Lab) -> None:
    (host,) = lab.hosts
    with Agent(host, f"--etcd-endpoints={ENDPOINT}") as agent:
        agent.wait_for_line("the overlay network's route 10.9.9.0/24 would cut this host off from 10.9.9.9")
        config = {
            "Network": OVERLAY,
            "SubnetMin": "10.64.0.0",
            "SubnetMax": "10.127.0.0",
            "Backend": {"Type": "host-gw"},
        }
        by_hand(lab).configure(config)
        agent.wait_ready()
        assert problems_of(host) == []


@pytest.mark.parametrize("lab", [["udp", ("10.70.1.0/24", "10.7.7.7"), ("10.70.2.0/24", "192.0.2.7")]], indirect=True)
def test_a_peer_whose_host_is_inside_the_overlay_is_ignored_and_the_others_go_on(lab: Lab) -> None:
    (host,) = lab.hosts
    with Agent(host) as agent:
        agent.wait_ready()
        agent.wait_for_line("entry '10.70.1.0-24' is ignored: PublicIP 10.7.7.7 is in the overlay network 10.0.0.0/8")
        assert host.control("/v1/route?address=10.70.1.5")["verdict"] == "no route"
        assert host.control("/v1/route?address=10.70.2.5")["public_ip"] == "192.0.2.7"
