"""Whose key it is: two hosts with one address, entries that only look like ours, clones. Real agents, etcd and file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import pytest

from flannel_udp.files.host_id import HOST_ID, mark_of
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import Plan
from tests.support.agents import (
    WITH_TIME_TO_CLEAN_UP,
    Agent,
    Log,
    log_of,
    peers_of,
    pid_of,
    start_agents,
    subnet_of,
    wait_for,
    wait_for_peers,
)
from tests.support.by_hand import by_hand
from tests.support.labs import NEEDS_NETNS, fresh_name

pytestmark = NEEDS_NETNS

SHARED = "--public-ip=192.0.2.77"


@pytest.fixture(params=["file", "etcd"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Three hosts on which nothing runs yet."""
    with Lab(Plan(fresh_name(), hosts=3, pods=1, registry=request.param, agents=())) as made:
        yield made


def start(host: Host, *arguments: str) -> None:
    host.start_agent(*arguments)
    host.wait_ready()


def releasing(host: Host) -> Agent:
    return Agent(host, SHARED, "--release-on-exit", program=WITH_TIME_TO_CLEAN_UP)


def state_of(host: Host) -> str:
    return str(host.control("/v1/status")["state"])


def mark_of_host(host: Host) -> str:
    return f"{mark_of((host.state_dir / HOST_ID).read_text().strip()):08x}"


def test_of_two_hosts_with_one_address_one_forwards_and_the_other_says_who_has_it(lab: Lab) -> None:
    h1, h2, _ = lab.hosts
    start(h1, SHARED)
    subnet = subnet_of(h1)
    start(h2, SHARED)
    assert subnet_of(h2) == subnet
    wait_for("h1 has stopped", lambda: not h1.is_ready())
    claim = f"another host claims our address 192.0.2.77: {str(subnet).replace('/', '-')} is under the mark"
    wait_for("h1 says so", lambda: state_of(h1).startswith(f"waiting for a lease: {claim} {mark_of_host(h2)}"))
    wait_for("and why it waits", lambda: bool([line for line in log_of(h1) if "keeps the subnet for 10 min" in line]))
    assert h2.is_ready()
    # The one that lost it deletes nothing, and the one that has it does.
    before = by_hand(lab).subnets()
    h1.stop_agent()
    assert by_hand(lab).subnets() == before
    assert h2.is_ready()


def test_two_hosts_with_one_address_that_start_at_once_are_never_both_ready_without_a_word(lab: Lab) -> None:
    h1, h2, _ = lab.hosts
    for host in (h1, h2):
        host.start_agent(SHARED)

    def told() -> bool:
        states = [host.control("/v1/status") for host in (h1, h2)]
        stopped = [state for state in states if "claims our address" in state["state"]]
        degraded = [state for state in states if state["degraded"] == ["identity"]]
        return len(stopped) == 1 or len(degraded) == 2

    wait_for("both answer", lambda: all(host.backend for host in (h1, h2)))
    wait_for("it is told", told)


def test_the_loser_releases_nothing_and_goes_on_at_once_when_the_other_does(lab: Lab) -> None:
    h1, h2, _ = lab.hosts
    with releasing(h1) as loser:
        loser.wait_ready()
        with releasing(h2) as other:
            other.wait_ready()
            wait_for("h1 has stopped", lambda: not h1.is_ready())
            (key,) = by_hand(lab).subnets()
            assert other.stop() == 0
        wait_for("h1 forwards again", h1.is_ready)
        assert str(subnet_of(h1)) == key.replace("-", "/")
        with releasing(h2) as other:
            other.wait_ready()
            wait_for("h1 has stopped", lambda: not h1.is_ready())
            assert loser.stop() == 0
            assert list(by_hand(lab).subnets()) == [key]
            assert h2.is_ready()


def test_hosts_that_exit_at_a_loss_do_not_take_the_subnet_from_each_other_at_every_start(lab: Lab) -> None:
    h1, h2, _ = lab.hosts
    start(h1, SHARED, "--on-lease-loss=exit")
    start(h2, SHARED, "--on-lease-loss=exit")
    wait_for("h1 has ended", lambda: h1.agent_pid() is None)
    for _ in range(2):
        with Agent(h1, SHARED, "--on-lease-loss=exit") as agent:
            agent.wait_for_line("acquiring a subnet failed: another host claims our address 192.0.2.77")
            assert agent.stop() == 0
    assert h2.is_ready()
    (key,) = by_hand(lab).subnets()
    by_hand(lab).delete(key)
    wait_for("h2 has ended", lambda: h2.agent_pid() is None)
    start(h1, SHARED, "--on-lease-loss=exit")


def test_a_copy_of_a_host_is_found_out(lab: Lab) -> None:
    h1, h2, _ = lab.hosts
    start(h1, SHARED)
    shutil.copytree(h1.state_dir, h2.state_dir)
    start(h2, SHARED)
    wait_for("h1 has stopped", lambda: not h1.is_ready())
    wait_for("h1 says so", lambda: "a copy of this host, or a second agent on it, claims our address" in state_of(h1))
    assert h2.is_ready()


def test_a_copy_with_another_address_is_a_host_like_any_other(lab: Lab) -> None:
    h1, h2, _ = lab.hosts
    start(h1)
    shutil.copytree(h1.state_dir, h2.state_dir)
    start_agents([h2])
    wait_for_peers([h1, h2])
    assert (h1.is_ready(), h2.is_ready()) == (True, True)


def test_a_lease_under_our_address_that_is_not_ours_is_never_deleted_and_the_kernel_gets_its_packets(lab: Lab) -> None:
    h1, h2, _ = lab.hosts
    hand = by_hand(lab)
    service = "10.244.200.9"
    entries = {f"{service}-32": str(h1.underlay), "10.244.201.0-25": str(h1.underlay), "10.9.9.0-24": str(h1.underlay)}
    for key, address in entries.items():
        hand.put_leased(key, json.dumps({"PublicIP": address}))
    start_agents([h1, h2])
    assert hand.subnets().keys() > entries.keys()
    assert str(subnet_of(h1)).endswith(".0/24")
    h1.configure(f"addr add {service}/32 dev lo")
    wait_for("h2 has it", lambda: peers_of(h2).get(f"{service}/32") == str(h1.underlay))
    h2.pods[0].run(["ping", "-c", "3", "-i", "0.2", "-W", "60", service])
    (line,) = [line for line in log_of(h1) if f"entry '{service}-32'" in line]
    assert "has our public IP" in line
    for host in (h1, h2):
        host.stop_agent()
    assert hand.subnets().keys() > entries.keys()


def test_another_hosts_subnet_under_our_address_is_named_while_it_is_there(lab: Lab) -> None:
    h1, _, _ = lab.hosts
    hand = by_hand(lab)
    start(h1)
    log = Log(h1)
    hand.put_leased("10.244.210.0-24", json.dumps({"PublicIP": str(h1.underlay)}))
    wait_for("it is degraded", lambda: h1.control("/v1/status")["degraded"] == ["identity"])
    assert h1.is_ready()
    (problem,) = h1.control("/v1/status")["problems"]
    assert problem.startswith("another host has 10.244.210.0-24 under our address")
    hand.delete("10.244.210.0-24")
    wait_for("it is well", lambda: h1.control("/v1/status")["degraded"] == [])
    assert len(log.lines("10.244.210.0-24")) == 2


def test_a_restart_and_a_take_over_keep_the_subnet_and_the_mark(lab: Lab) -> None:
    h1, _, _ = lab.hosts
    start(h1)
    subnet = subnet_of(h1)
    h1.kill_agent()
    start(h1)
    assert subnet_of(h1) == subnet
    lease = h1.control("/v1/status")["lease"]
    assert lease["mark"] == mark_of_host(h1)
    (former,) = by_hand(lab).subnets().items()
    old = pid_of(h1)
    with Agent(h1, "--takeover") as agent:
        agent.wait_for_take_over(old)
        assert pid_of(h1) == agent.process.pid
        assert h1.control("/v1/status")["lease"]["mark"] == lease["mark"]
        (now,) = by_hand(lab).subnets().items()
        assert same_owner(now, former)
        assert agent.stop() == 0


def same_owner(now: tuple[str, str], former: tuple[str, str]) -> bool:
    """Tell whether two entries say the same, whenever they end."""
    values = [json.loads(value) | {"Expires": None} for _, value in (now, former)]
    return now[0] == former[0] and values[0] == values[1]


def test_without_a_place_for_its_id_a_host_runs_with_one_warning(lab: Lab) -> None:
    h1, _, _ = lab.hosts
    start(h1, "--state-dir=/proc/nowhere")
    (line,) = [line for line in log_of(h1) if "--state-dir" in line]
    assert line == (
        "the host's id cannot be kept in /proc/nowhere/host-id: No such file or directory; this run has an id of its "
        "own and knows no earlier run's leases: see --state-dir"
    )
    subnet = subnet_of(h1)
    h1.stop_agent()
    start(h1, "--state-dir=/proc/nowhere")
    assert subnet_of(h1) == subnet
