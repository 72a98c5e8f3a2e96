"""An agent with host-gw ends and comes back, or hands over, under traffic: no packet is lost."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, Plan
from flannel_udp.lab.probe import ping
from tests.support.agents import WITH_TIME_TO_CLEAN_UP, Agent, Log, pid_of, subnet_of, up_with_peers, wait_for
from tests.support.by_hand import by_hand
from tests.support.flow import Flow
from tests.support.ip_monitor import ip_monitor
from tests.support.kernel_state import kernel_state, lease_end_of, ours_of
from tests.support.labs import NEEDS_NETNS, fresh_name

pytestmark = NEEDS_NETNS

INTERVAL_S = 0.0005
"""Of each flow: what Python makes of it is about 1,000 packets a second."""
DAY_S = 86_400
ENDS_SLOWLY = """
import sys
from flannel_udp.agent import agent
from flannel_udp.cli.main import main
agent.END_TIMEOUT_S = 15.0
sys.exit(main())
"""
"""A program: the agent, which has 1.2 s for its end, and waits for the registry as long."""


@pytest.fixture(scope="module")
def shared() -> Iterator[Lab]:
    config = {"Network": str(OVERLAY), "Backend": {"Type": "host-gw"}}
    with Lab(Plan(fresh_name(), hosts=2, config=config)) as lab:
        yield lab


@pytest.fixture
def duo(shared: Lab) -> Lab:
    """Two hosts whose agents run, know each other and carry traffic, whatever the test before did to them."""
    h1, h2 = shared.hosts
    if h1.agent_pid() is None:
        h1.start_agent()
        h1.wait_ready()
    up_with_peers(shared)
    wait_for("traffic", lambda: ping(h1.pods[0], [h2.pods[0].ip], timeout_s=0.2) != [None])
    return shared


@contextmanager
def nothing_lost(lab: Lab) -> Iterator[None]:
    """Let packets pass each way during the block, none of which is lost."""
    p1, p2 = lab.pods()
    with Flow(p1, p2, interval_s=INTERVAL_S) as there, Flow(p2, p1, interval_s=INTERVAL_S) as back:
        for flow in (there, back):
            flow.wait_for_one_sent_from_now()
        started_s = time.monotonic()
        yield
        for flow in (there, back):
            flow.wait_for_one_sent_from_now()
            flow.end()
        took_s = time.monotonic() - started_s
    print(f"{there.sent} and {back.sent} packets in {took_s:.1f} s")  # noqa: T201 - pytest -s shows it
    assert (there.missing, back.missing) == ([], [])


def route_to(h2: Host, h1: Host) -> str:
    """Return h1's route to h2's pods, as it stands while the lease lives."""
    return f"{subnet_of(h2)} via {h2.underlay} dev eth0 src {subnet_of(h1).network_address}"


def assert_lease_ends_routes(h1: Host, h2: Host) -> None:
    """The routes hang on the address on `lo`, and that one lives no longer than the lease."""
    assert ours_of(h1) == [route_to(h2, h1)]
    address, _, life = (lease_end_of(h1) or "").partition(" ")
    assert address == f"{subnet_of(h1).network_address}/32"
    assert 0 < int(life.removesuffix("sec")) < DAY_S


def test_kill_9_and_a_start_lose_nothing(duo: Lab) -> None:
    h1, h2 = duo.hosts
    subnet = subnet_of(h1)
    with nothing_lost(duo):
        h1.kill_agent()
        assert_lease_ends_routes(h1, h2)
        h1.start_agent()
        h1.wait_ready()
        h1.wait_peers({subnet_of(h2)})
    assert subnet_of(h1) == subnet
    assert_lease_ends_routes(h1, h2)


def test_sigterm_leaves_the_routes_for_good_and_a_start_lets_them_end_with_the_lease_again(duo: Lab) -> None:
    h1, h2 = duo.hosts
    with nothing_lost(duo):
        h1.stop_agent()
        assert ours_of(h1) == [route_to(h2, h1)]
        assert lease_end_of(h1) == f"{subnet_of(h1).network_address}/32 forever"
        h1.start_agent()
        h1.wait_ready()
        h1.wait_peers({subnet_of(h2)})
    assert_lease_ends_routes(h1, h2)


def test_a_take_over_loses_nothing_and_writes_no_route(duo: Lab, tmp_path: Path) -> None:
    h1, h2 = duo.hosts
    old, log, told = pid_of(h1), Log(h1), tmp_path / "told"
    with nothing_lost(duo), ExitStack() as running:
        with ip_monitor(h1, told, "-4", "monitor", "route"):
            agent = running.enter_context(Agent(h1, "--takeover"))
            agent.wait_for_take_over(old)
            h1.wait_peers({subnet_of(h2)})
            assert_lease_ends_routes(h1, h2)
        assert agent.stop() == 0
        assert told.read_text() == ""
    assert log.lines("put right") == []
    assert [line for line in log.complaints() if not line.startswith("degraded: ")] == []


def test_a_take_over_that_fails_leaves_routes_address_and_key_to_the_old_agent(duo: Lab) -> None:
    h1, h2 = duo.hosts
    before, entries, log = kernel_state(h1), by_hand(duo).subnets(), Log(h1)
    with nothing_lost(duo):
        flags = ("--healthz-ip=192.0.2.77", "--healthz-port=8080", "--clean-on-exit", "--release-on-exit")
        with Agent(h1, "--takeover", *flags) as agent:
            assert agent.exit_code() == 1
        assert any("cannot serve health on 192.0.2.77" in line for line in agent.said()), agent.said()
    assert kernel_state(h1) == before
    assert by_hand(duo).subnets() == entries
    assert_lease_ends_routes(h1, h2)
    assert log.lines("put right") == log.lines("lost") == []
    assert h1.is_ready()


def test_routes_of_peers_that_left_or_moved_while_no_agent_ran_go_at_the_start(duo: Lab) -> None:
    h1, hand = duo.hosts[0], by_hand(duo)
    peers = {"10.244.240.0-24": "192.0.2.90", "10.244.241.0-24": "192.0.2.91"}
    for key, address in peers.items():
        hand.put(key, f'{{"PublicIP":"{address}","BackendType":"host-gw"}}')
    wait_for("their routes", lambda: len(ours_of(h1)) == 3)
    h1.stop_agent()
    hand.delete("10.244.240.0-24")
    hand.put("10.244.241.0-24", '{"PublicIP":"192.0.2.99","BackendType":"host-gw"}')
    h1.start_agent()
    h1.wait_ready()
    source = subnet_of(h1).network_address
    expected = {route_to(duo.hosts[1], h1), f"10.244.241.0/24 via 192.0.2.99 dev eth0 src {source}"}
    wait_for("the routes are those of today", lambda: set(ours_of(h1)) == expected)
    hand.delete("10.244.241.0-24")
    wait_for("it is gone", lambda: len(ours_of(h1)) == 1)


def test_with_on_lease_loss_exit_the_routes_go_with_the_agent(duo: Lab) -> None:
    h1 = duo.hosts[0]
    h1.stop_agent()
    with Agent(h1, "--on-lease-loss=exit") as agent:
        agent.wait_ready()
        by_hand(duo).delete(str(subnet_of(h1)).replace("/", "-"))
        assert agent.exit_code() == 1
    assert (ours_of(h1), lease_end_of(h1)) == ([], None)


def test_with_clean_on_exit_routes_and_address_are_gone(duo: Lab) -> None:
    h1 = duo.hosts[0]
    h1.stop_agent()
    with Agent(h1, "--clean-on-exit") as agent:
        agent.wait_ready()
        assert agent.stop() == 0
    assert ours_of(h1) == []
    assert lease_end_of(h1) is None
    assert str(subnet_of(h1)).replace("/", "-") in by_hand(duo).subnets()


def test_with_release_on_exit_the_key_is_gone_and_the_routes(duo: Lab) -> None:
    h1 = duo.hosts[0]
    h1.stop_agent()
    with Agent(h1, "--release-on-exit", program=WITH_TIME_TO_CLEAN_UP) as agent:
        agent.wait_ready()
        assert agent.stop() == 0
        assert f"released subnet {subnet_of(h1)}" in agent.said()
    assert str(subnet_of(h1)).replace("/", "-") not in by_hand(duo).subnets()
    assert (ours_of(h1), lease_end_of(h1)) == ([], None)


def test_with_release_on_exit_the_routes_are_gone_before_the_registry_knows(duo: Lab) -> None:
    h1 = duo.hosts[0]
    h1.stop_agent()
    with Agent(h1, "--release-on-exit", program=("-c", ENDS_SLOWLY)) as agent:
        agent.wait_ready()
        h1.wait_peers({subnet_of(duo.hosts[1])})
        with duo.plan.registry_file.with_name("registry.json.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # nobody can write the registry now
            assert agent.stop() == 0
            assert (ours_of(h1), lease_end_of(h1)) == ([], None)
        agent.wait_for_line("the lease was not released and stays until it expires")
    assert str(subnet_of(h1)).replace("/", "-") in by_hand(duo).subnets()
