"""DirectRouting by IPv6, beside IPv4 and alone, with our own packet path: near hosts have a route, the far one none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, Plan
from flannel_udp.lab.probe import tcp_rate
from flannel_udp.lab.sites import Router
from tests.support.agents import (
    Agent,
    all_reach,
    command_json,
    command_line,
    log_of,
    pid_of,
    unanswered,
    wait_for,
    wait_for_pings,
)
from tests.support.by_hand import by_hand
from tests.support.ip_monitor import ip_monitor
from tests.support.kernel_state import ours_of
from tests.support.labs import NEEDS_NETNS, fresh_name

pytestmark = NEEDS_NETNS

DEVICES = {"udp": "flannel0", "vxlan": "flannel-v6.1"}


@pytest.fixture(
    scope="module",
    params=[("udp", "46"), ("udp", "6"), ("vxlan", "46"), ("vxlan", "6")],
    ids=["udp", "udp, IPv6 alone", "vxlan in user space", "vxlan in user space, IPv6 alone"],
)
def trio(request: pytest.FixtureRequest) -> Iterator[Lab]:
    kind, families = request.param
    config = {"Network": str(OVERLAY), "Backend": {"Type": kind, "DirectRouting": True}}
    arguments = ("--datapath=userspace",) if kind == "vxlan" else ()
    plan = Plan(
        *(fresh_name(), 3),
        families=families,
        config=config,
        agent_args=arguments,
        routers={"r1": Router()},
        behind={"h3": "r1"},
    )
    with Lab(plan) as lab:
        wait_for_pings(lab)
        yield lab


def routes_of(host: Host) -> list[str]:
    """Return our IPv6 routes, without when they end."""
    shown = host.run(["ip", "-6", "route", "show", "proto", "82"]).stdout.splitlines()
    return sorted(line.partition(" metric")[0].strip() for line in shown)


def route_to(peer: Host) -> str:
    return f"{peer.subnet_of(6)} via {peer.underlay_of(6)} dev eth0"


def test_the_near_ones_have_a_route_that_ends_and_the_far_one_the_tunnel(trio: Lab) -> None:
    h1, h2, h3 = trio.hosts
    wait_for("routes", lambda: [routes_of(h) for h in trio.hosts] == [[route_to(h2)], [route_to(h1)], []])
    assert " expires " in h1.run(["ip", "-6", "route", "show", "proto", "82"]).stdout

    def ways() -> dict[str, str]:
        return {peer["subnet"]: peer["datapath"] for peer in h1.control("/v1/peers")}

    expected = {(h2, "direct"), (h3, "tunnel")}
    by_subnet = {str(host.subnet_of(v)): way for host, way in expected for v in trio.plan.versions}
    wait_for("each family's ways", lambda: ways() == by_subnet)
    for host, device in ((h2, "eth0"), (h3, DEVICES[trio.plan.backend])):
        assert f" dev {device} " in h1.run(["ip", "-6", "route", "get", str(host.pods[0].address(6))]).stdout
    assert "direct" in command_line(h1, "route", "get", str(h2.pods[0].address(6))).stdout
    assert h1.control("/v1/status")["backend"]["direct"] == len(trio.plan.versions)


def test_all_pods_reach_all_and_what_is_direct_is_not_counted_in_the_tunnel(trio: Lab) -> None:
    h1, h2, h3 = trio.hosts
    p1, *others = trio.pods()
    for version in trio.plan.versions:
        assert unanswered(trio.pods(), version) == []
        for other in others:
            assert tcp_rate(p1, other, other.address(version), duration_s=0.1) > 0
            assert tcp_rate(other, p1, p1.address(version), duration_s=0.1) > 0
    counted = {row["subnet"]: row["packets_out"] for row in command_json(h1, "peers")}
    for version in trio.plan.versions:
        assert counted[str(h2.subnet_of(version))] is None
        assert counted[str(h3.subnet_of(version))] > 0
    wait_for("nothing is wrong", lambda: all(host.control("/v1/status")["problems"] == [] for host in trio.hosts))


def test_a_route_that_is_deleted_comes_back_and_is_counted(trio: Lab) -> None:
    h1, h2, _ = trio.hosts
    before = h1.control("/v1/status")["host_repairs"]["direct"]
    h1.configure(f"route del {h2.subnet_of(6)}")
    wait_for("it is back", lambda: routes_of(h1) == [route_to(h2)])
    wait_for("it is counted", lambda: h1.control("/v1/status")["host_repairs"]["direct"] == before + 1)


def test_a_peer_that_moves_behind_a_router_by_ipv6_is_followed_there_and_back(trio: Lab) -> None:
    h1, h2, _ = trio.hosts
    way = f"{h2.underlay_of(6)} via {trio.plan.gateway('h1', 6)}"
    ipv4 = ours_of(h1)
    h1.configure(f"route add {way}")
    try:
        wait_for("the tunnel", lambda: routes_of(h1) == [])
        assert ours_of(h1) == ipv4
        wait_for("traffic", lambda: all_reach(trio, 6))
    finally:
        h1.configure(f"route del {way}")
    wait_for("direct again", lambda: routes_of(h1) == [route_to(h2)])
    assert unanswered(trio.pods(), 6) == []


def test_a_take_over_writes_no_route(trio: Lab, tmp_path: Path) -> None:
    h1, h2, _ = trio.hosts
    old, told = pid_of(h1), tmp_path / "told"
    with ExitStack() as running:
        with ip_monitor(h1, told, "-6", "monitor", "route"):
            agent = running.enter_context(Agent(h1, "--takeover", *trio.plan.agent_args))
            agent.wait_for_take_over(old)
            wait_for("its peers", lambda: h1.control("/v1/status")["backend"].get("direct"))
        assert agent.stop() == 0
    assert [line for line in told.read_text().splitlines() if f"Deleted {h2.subnet_of(6)}" in line] == []
    h1.start_agent()
    h1.wait_ready()
    wait_for("its route", lambda: routes_of(h1) == [route_to(h2)])


def test_without_the_option_a_restart_leaves_nothing_of_it(trio: Lab) -> None:
    """The last one here: the cluster is without the option from then on."""
    by_hand(trio).configure({**trio.plan.config, "Backend": {"Type": trio.plan.backend}})
    for host in trio.hosts:
        host.kill_agent()
        host.start_agent()
    for host in trio.hosts:
        host.wait_ready()
        wait_for("the routes are gone", lambda host=host: routes_of(host) == ours_of(host) == [])  # type: ignore[misc]
    said = "removed what an earlier run left: our routes to peers: "
    wait_for("it is said", lambda: any(said in line for line in log_of(trio.hosts[0])))
    wait_for_pings(trio)


# Where the kernel has no VXLAN

WITHOUT_VXLAN = """
import runpy
from functools import partial
from flannel_udp.backend.vxlan import kernel
kernel.VxlanKind = partial(kernel.VxlanKind, kind="nonsense")
runpy.run_module("flannel_udp", run_name="__main__")
"""
"""An agent that asks the kernel for devices of a kind that no kernel has: the refusal is the kernel's own."""


def test_auto_takes_our_own_packet_path_for_both_versions_and_near_ones_have_their_routes() -> None:
    config = {"Network": str(OVERLAY), "Backend": {"Type": "vxlan", "DirectRouting": True}}
    plan = Plan(
        *(fresh_name(), 3),
        families="46",
        config=config,
        agents=("h2", "h3"),
        routers={"r1": Router()},
        behind={"h3": "r1"},
    )
    with Lab(plan) as lab:
        h1, h2, h3 = lab.hosts
        with Agent(h1, "--datapath=auto", program=("-c", WITHOUT_VXLAN)) as agent:
            agent.wait_ready()
            h1.attach_pods()
            wait_for_pings(lab)
            wait_for("near ones are direct", lambda: h1.control("/v1/status")["backend"]["direct"] == 2)
            wait_for("h2's route", lambda: routes_of(h1) == [route_to(h2)])
            assert h1.control("/v1/status")["backend"]["datapath"] == "userspace"
            assert any("this kernel has no nonsense" in line for line in agent.said())
            ways = {peer["subnet"]: peer["datapath"] for peer in h1.control("/v1/peers")}
            expected = {(h2, "direct"), (h3, "tunnel")}
            assert ways == {str(host.subnet_of(v)): way for host, way in expected for v in (4, 6)}
            assert routes_of(h1) == [route_to(h2)]
            for version, device in ((4, "flannel.1"), (6, "flannel-v6.1")):
                shown = h1.run(["ip", f"-{version}", "route", "get", str(h3.pods[0].address(version))]).stdout
                assert f" dev {device} " in shown
                assert "vxlan" not in h1.run(["ip", "-d", "link", "show", device]).stdout
            assert h2.control("/v1/status")["backend"]["datapath"] == "kernel"
