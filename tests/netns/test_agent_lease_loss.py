"""The key of a running agent is deleted or overwritten: it stops forwarding at once, says why, and starts afresh."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import Plan
from flannel_udp.lab.probe import ping
from tests.netns.test_doctor import faults
from tests.support.agents import Agent, Log, drops_of, remains_of, subnet_of, up_with_peers, wait_for, wait_for_peers
from tests.support.by_hand import ByHand, by_hand
from tests.support.flow import Flow
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import PATIENCE_S, promised

pytestmark = NEEDS_NETNS

STRANGER = '{"PublicIP":"192.0.2.99"}'
NOTICE_S = 1.0
"""How soon an agent must notice that its key is gone."""


@pytest.fixture(scope="module", params=["file", "etcd"])
def two_subnets(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Two hosts and a network of exactly two subnets. Every test ends with both hosts ready."""
    if request.param == "etcd":
        request.getfixturevalue("needs_etcd")
    config = {"Network": "10.244.0.0/16", "SubnetMin": "10.244.1.0", "SubnetMax": "10.244.2.0"}
    with Lab(Plan(fresh_name(), hosts=2, registry=request.param, config=config)) as lab:
        yield up_with_peers(lab)


def key_of(host: Host) -> str:
    return str(subnet_of(host)).replace("/", "-")


def losses(log: Log) -> list[str]:
    """Return the lines about lost subnets."""
    return log.lines("lost our subnet")


def is_held(hand: ByHand, host: Host) -> bool:
    entry = hand.subnets().get(key_of(host))
    return entry is not None and json.loads(entry)["PublicIP"] == str(host.underlay)


def test_a_deleted_key_is_noticed_and_the_subnet_taken_again(two_subnets: Lab) -> None:
    h1, h2 = two_subnets.hosts
    hand = by_hand(two_subnets)
    subnet, log, others_log = subnet_of(h1), Log(h1), Log(h2)
    with Flow(h1.pods[0], h2.pods[0]) as there, Flow(h2.pods[0], h1.pods[0]) as back:
        there.wait_for_one_sent_from_now()
        hand.delete(key_of(h1))
        assert wait_for("the loss is noticed", lambda: bool(losses(log))) < promised(NOTICE_S)
        wait_for("the subnet is held again", lambda: is_held(hand, h1))
        wait_for("ready again", h1.is_ready)
        wait_for_peers([h1, h2])
        there.wait_for_one_sent_from_now()
        back.wait_for_one_sent_from_now()
    assert subnet_of(h1) == subnet
    key = key_of(h1)
    assert losses(log) == [
        f"lost our subnet {subnet}: {key} was deleted from the registry or expired; forwarding stopped"
    ]
    assert losses(others_log) == []


def lease_command(host: Host, *words: str) -> str:
    argv = [sys.executable, "-m", "flannel_udp", "lease", *words, *host.plan.registry_args]
    return host.run(argv).stdout


def test_a_lease_that_is_released_by_hand_is_sought_anew_and_one_that_is_reserved_goes_on(two_subnets: Lab) -> None:
    h1, h2 = two_subnets.hosts
    hand = by_hand(two_subnets)
    subnet, log = subnet_of(h1), Log(h1)
    with Flow(h1.pods[0], h2.pods[0]) as flow:
        flow.wait_for_one_sent_from_now()
        assert lease_command(h1, "reserve", str(subnet), "--yes") == f"reserved {subnet}\n"
        wait_for("the agent knows", lambda: h1.control("/v1/status")["lease"]["reserved"])
        flow.wait_for_one_sent_from_now()
    assert flow.missing == []
    assert losses(log) == []
    assert lease_command(h2, "release", str(subnet), "--yes") == f"released {subnet}\n"
    wait_for("the loss is noticed", lambda: bool(losses(log)))
    wait_for("the subnet is held again", lambda: is_held(hand, h1))
    wait_for("ready again", h1.is_ready)
    wait_for_peers([h1, h2])
    assert h1.control("/v1/status")["lease"]["reserved"] is False


def test_forwarding_stops_while_another_holds_our_subnet_and_returns_with_it(two_subnets: Lab) -> None:
    h1, h2 = two_subnets.hosts
    hand = by_hand(two_subnets)
    key, subnet, log = key_of(h1), subnet_of(h1), Log(h1)
    hand.put(key, STRANGER)
    assert wait_for("the loss is noticed", lambda: bool(losses(log))) < promised(NOTICE_S)
    wait_for("not ready any more", lambda: h1.control("/v1/status")["ready"] is False)
    before = h1.control("/v1/status")["counters"]
    # Nothing of ours goes out, and what still comes in is not delivered.
    assert ping(h1.pods[0], [h2.pods[0].ip], timeout_s=0.3) == [None]
    dropped = before["out"]["drops"].get("no_route", 0)
    wait_for("it is dropped", lambda: drops_of(h1, "out").get("no_route", 0) > dropped)
    after = h1.control("/v1/status")["counters"]
    assert after["out"]["packets"] == before["out"]["packets"]
    assert after["in"]["packets"] == before["in"]["packets"]
    assert losses(log) == [f"lost our subnet {subnet}: {key} was taken by 192.0.2.99; forwarding stopped"]
    wait_for("that no subnet is free is said", lambda: bool(log.lines("are taken")))
    status = h1.control("/v1/status")
    assert (status["state"], status["subnet"], status["lease"]) == ("waiting for a lease", None, None)

    hand.delete(key)
    wait_for("held again", h1.is_ready)
    assert subnet_of(h1) == subnet
    wait_for_peers([h1, h2])
    assert ping(h1.pods[0], [h2.pods[0].ip], PATIENCE_S) != [None]
    assert len(log.lines("are taken")) == 1  # once, however often it was tried


def test_where_the_configuration_is_gone_as_well_it_is_that_which_is_waited_for(two_subnets: Lab) -> None:
    h1, h2 = two_subnets.hosts
    hand = by_hand(two_subnets)
    hand.unconfigure()
    hand.delete(key_of(h1))
    wait_for("it waits", lambda: h1.control("/v1/status")["state"] == "waiting for configuration")
    error = h1.control("/v1/status")["last_errors"]["configuration"]
    assert "no network configuration" in error["text"]
    assert not error["over"]
    assert "no network configuration" in faults(h1)["registry"][0]
    hand.configure(two_subnets.plan.config)
    wait_for("ready again", h1.is_ready)
    assert h1.control("/v1/status")["last_errors"]["configuration"]["over"]
    wait_for_peers([h1, h2])


def test_an_overwritten_key_means_another_subnet_when_one_is_free(registry: str) -> None:
    with Lab(Plan(fresh_name(), hosts=2, registry=registry)) as lab:
        h1, h2 = up_with_peers(lab).hosts
        hand = by_hand(lab)
        former, log = subnet_of(h1), Log(h1)
        hand.put(key_of(h1), STRANGER)
        wait_for("another subnet", lambda: subnet_of(h1) != former and h1.is_ready())
        wait_for_peers([h1, h2])
        # The hosts' own addresses in the overlay follow; the pods would be moved by the container runtime.
        assert ping(h2, [subnet_of(h1).network_address], PATIENCE_S) != [None]
        assert json.loads(hand.subnets()[str(former).replace("/", "-")]) == json.loads(STRANGER)
        routes = h1.run(["ip", "-o", "addr", "show", "dev", "flannel0"]).stdout
        assert str(former.network_address) not in routes
        cut_off = "pods with an address of the old one are cut off: start them anew"
        assert log.lines(cut_off) == [f"our subnet is {subnet_of(h1)} now and was {former}: {cut_off}"]


def test_with_on_lease_loss_exit_the_agent_ends(registry: str) -> None:
    with Lab(Plan(fresh_name(), hosts=1, registry=registry, agents=())) as lab:
        (host,) = lab.hosts
        with Agent(host, "--on-lease-loss=exit") as agent:
            agent.wait_ready()
            by_hand(lab).delete(key_of(host))
            assert agent.exit_code() == 1
            key = key_of(host)
            loss = f"lost our subnet {subnet_of(host)}: {key} was deleted from the registry or expired"
            said = agent.said()
            assert [line for line in said if "lost" in line] == [f"flannel-udp: {loss}; forwarding stopped"]
            assert said[-1].startswith("flannel-udp: lost"), said
        assert remains_of(host) == {"subnet.env"}
        assert by_hand(lab).subnets() == {}
