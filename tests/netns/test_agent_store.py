"""What systemd keeps between two runs: gone on with where it fits, given up by systemd too where it does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, Plan
from flannel_udp.lab.probe import ping_matrix
from tests.support.agents import Agent, links_of, wait_for
from tests.support.by_hand import by_hand
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.systemd import Systemd

pytestmark = NEEDS_NETNS

ONE, TWO = ["icmp", "tun-0", "udp-0"], ["icmp", "tun-0", "tun-1", "udp-0", "udp-1"]
GOING_ON, NO_USE = "as the last run left it", "what systemd kept from the last run is of no use, opening afresh"


@pytest.fixture
def duo() -> Iterator[Lab]:
    """Two hosts with pods; only the second one runs an agent yet."""
    with Lab(Plan(fresh_name(), hosts=2, agents=("h2",))) as lab:
        yield lab


def assert_up(lab: Lab, systemd: Systemd, agent: Agent, kept: list[str]) -> None:
    """Wait for the agent of the first host, and see that packets pass and systemd keeps this."""
    host = lab.hosts[0]
    wait_for(f"ready; it said {agent.said()}", systemd.is_ready)
    if not host.pod_addresses():
        host.attach_pods()
    wait_for("traffic", lambda: None not in ping_matrix(lab.pods(), timeout_s=0.5).values())
    systemd.wait_stored(kept)


def said(agent: Agent, part: str) -> bool:
    return any(part in line for line in agent.said())


def index_of(host: Host, device: str) -> str:
    return host.run(["cat", f"/sys/class/net/{device}/ifindex"]).stdout


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 2)])
def test_a_restart_with_so_many_workers(duo: Lab, tmp_path: Path, before: int, after: int) -> None:
    host, names = duo.hosts[0], {1: ONE, 2: TWO}
    with Systemd(tmp_path) as systemd:
        with systemd.run(host, f"--workers={before}") as agent:
            assert_up(duo, systemd, agent, names[before])
            index = index_of(host, "flannel0")
            assert agent.stop() == 0
        for _ in range(2):
            with systemd.run(host, f"--workers={after}") as agent:
                assert_up(duo, systemd, agent, names[after])
                assert links_of(host) == ["flannel0"]
                assert (index_of(host, "flannel0") == index) == (before == after)
                assert agent.stop() == 0
        assert said(agent, GOING_ON)


def test_a_restart_with_another_port(duo: Lab, tmp_path: Path) -> None:
    host = duo.hosts[0]
    with Systemd(tmp_path) as systemd:
        with systemd.run(host) as agent:
            assert_up(duo, systemd, agent, ONE)
            assert agent.stop() == 0
        by_hand(duo).configure({"Network": str(OVERLAY), "Backend": {"Type": "udp", "Port": 8286}})
        duo.hosts[1].stop_agent()
        duo.hosts[1].start_agent()
        with systemd.run(host) as agent:
            assert_up(duo, systemd, agent, ONE)
            assert (said(agent, NO_USE), links_of(host)) == (True, ["flannel0"])
            sockets = host.run(["ss", "-Hlun"]).stdout
            assert ":8286" in sockets
            assert ":8285" not in sockets


def test_a_restart_with_other_offloads_goes_on_with_what_is_kept(duo: Lab, tmp_path: Path) -> None:
    host = duo.hosts[0]
    with Systemd(tmp_path) as systemd:
        with systemd.run(host) as agent:
            assert_up(duo, systemd, agent, ONE)
            index = index_of(host, "flannel0")
            assert agent.stop() == 0
        for flag, offload in (("--offload=off", []), ("--offload=tso,udp-gro", ["tso", "udp-gro"])):
            with systemd.run(host, flag) as agent:
                assert_up(duo, systemd, agent, ONE)
                assert host.control("/v1/status")["offload"] == offload
                assert index_of(host, "flannel0") == index
                assert agent.stop() == 0


def test_a_device_that_was_renamed_meanwhile_is_gone_on_with(duo: Lab, tmp_path: Path) -> None:
    host = duo.hosts[0]
    with Systemd(tmp_path) as systemd:
        with systemd.run(host) as agent:
            assert_up(duo, systemd, agent, ONE)
            index = index_of(host, "flannel0")
            assert agent.stop() == 0
        host.configure("link set flannel0 down", "link set flannel0 name overlay", "link set overlay up")
        with systemd.run(host) as agent:
            assert_up(duo, systemd, agent, ONE)
            assert said(agent, f"going on with overlay {GOING_ON}")
            assert (links_of(host), index_of(host, "overlay")) == ([], index)


def test_a_device_that_was_deleted_meanwhile_is_made_anew(duo: Lab, tmp_path: Path) -> None:
    host = duo.hosts[0]
    with Systemd(tmp_path) as systemd:
        with systemd.run(host, "--workers=2") as agent:
            assert_up(duo, systemd, agent, TWO)
            assert agent.stop() == 0
        host.configure("link del flannel0")
        with systemd.run(host, "--workers=2") as agent:
            assert_up(duo, systemd, agent, TWO)
            assert (said(agent, NO_USE), links_of(host)) == (True, ["flannel0"])


def test_a_killed_run_leaves_what_the_next_goes_on_with(duo: Lab, tmp_path: Path) -> None:
    host = duo.hosts[0]
    with Systemd(tmp_path) as systemd:
        with systemd.run(host, "--workers=2") as agent:
            assert_up(duo, systemd, agent, TWO)
            agent.process.kill()
            agent.exit_code()
        with systemd.run(host, "--workers=2") as agent:
            assert_up(duo, systemd, agent, TWO)
            assert (said(agent, GOING_ON), links_of(host)) == (True, ["flannel0"])
