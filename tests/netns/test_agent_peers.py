"""Peers join, leave and move while others' traffic flows, and poisoned entries cost nobody but themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from ipaddress import IPv4Address

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, UNDERLAY_GATEWAY, Plan
from flannel_udp.lab.probe import ping
from flannel_udp.lab.sites import UNDERLAY
from tests.support.agents import (
    command_json,
    log_of,
    peers_of,
    subnet_of,
    unanswered,
    up_with_peers,
    wait_for,
    wait_for_peers,
)
from tests.support.by_hand import by_hand
from tests.support.flow import Flow
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import promised

pytestmark = NEEDS_NETNS

FOLLOW_S = 1.0
"""How soon the other hosts must know what has changed in the registry."""

RESERVED = "10.244.200.0/24"
NEW_ADDRESS = IPv4Address("192.0.2.33")


@pytest.fixture
def trio(registry: str) -> Iterator[Lab]:
    """h1 and h2 run; h3, for which a subnet is reserved, does not yet."""
    plan = Plan(fresh_name(), hosts=3, registry=registry, agents=("h1", "h2"), reservations={RESERVED: "192.0.2.3"})
    with Lab(plan) as lab:
        yield up_with_peers(lab)


def start(host: Host) -> None:
    host.start_agent()
    host.wait_ready()
    if not host.pod_addresses():
        host.attach_pods()


def move(host: Host) -> None:
    """Give the host another address on the underlay."""
    host.configure(
        "addr flush dev eth0",
        f"addr add {NEW_ADDRESS}/{UNDERLAY.prefixlen} dev eth0",
        f"route add default via {UNDERLAY_GATEWAY}",
    )


def dials(host: Host, address: IPv4Address | None) -> bool:
    """Tell whether the host sends packets for the reserved subnet there."""
    return peers_of(host).get(RESERVED) == (None if address is None else str(address))


def is_reached(source: Host, target: IPv4Address) -> bool:
    return ping(source.pods[0], [target], timeout_s=1.0) != [None]


def assert_follows(source: Host, target: Host) -> None:
    """The agent of the source sends to the pod of the target in time, and then the pod's answer comes back.

    Of a flow, as one ping that was too early would count with all the time that its answer is waited for.
    """
    with Flow(source.pods[0], target.pods[0]) as flow:
        assert flow.wait_for_one_sent_from_now() < promised(FOLLOW_S)
    wait_for(f"{target.name}'s pod answers {source.name}'s", lambda: is_reached(source, target.pods[0].ip))


def test_a_peer_joins_moves_and_leaves_while_the_traffic_of_others_flows(trio: Lab) -> None:
    h1, h2, h3 = trio.hosts
    hand = by_hand(trio)
    key = RESERVED.replace("/", "-")
    with Flow(h1.pods[0], h2.pods[0]) as flow, Flow(h2.pods[0], h1.pods[0]) as back:
        # joins
        start(h3)
        assert_follows(h1, h3)
        assert_follows(h2, h3)
        assert str(subnet_of(h3)) == RESERVED

        # moves: same subnet, another public IP
        h3.stop_agent()
        move(h3)
        hand.put(key, json.dumps({"PublicIP": str(NEW_ADDRESS)}))
        for host in (h1, h2):
            assert wait_for(f"{host.name} follows", partial(dials, host, NEW_ADDRESS)) < promised(FOLLOW_S)
            assert command_json(host, "route", "get", str(h3.pods[0].ip))["public_ip"] == str(NEW_ADDRESS)
        start(h3)
        assert_follows(h1, h3)

        # leaves
        h3.stop_agent()
        hand.delete(key)
        for host in (h1, h2):
            assert wait_for(f"{host.name} forgets it", partial(dials, host, None)) < promised(FOLLOW_S)
        flow.wait_for_one_sent_from_now()
        back.wait_for_one_sent_from_now()
    assert min(flow.sent, back.sent) > 100
    assert (flow.missing, back.missing) == ([], [])
    assert f"peer added: {RESERVED} via 192.0.2.3" in log_of(h1)
    assert f"peer changed: {RESERVED} via {NEW_ADDRESS}" in log_of(h1)
    assert f"peer removed: {RESERVED} via {NEW_ADDRESS}" in log_of(h1)


def test_a_host_that_comes_back_with_another_address_gets_its_traffic_there(registry: str) -> None:
    with Lab(Plan(fresh_name(), hosts=2, registry=registry, agent_args=("--release-on-exit",))) as lab:
        h1, h2 = up_with_peers(lab).hosts
        former = subnet_of(h2)
        with Flow(h1.pods[0], h2.pods[0]) as flow:
            flow.wait_for_one_sent_from_now()
            h2.stop_agent()
            move(h2)
            h2.start_agent()
            h2.wait_ready()
            assert flow.wait_for_one_sent_from_now() < promised(FOLLOW_S)
        # Its lease was free again, so subnet.env decided.
        assert subnet_of(h2) == former
        assert peers_of(h1) == {str(former): str(NEW_ADDRESS)}


def poison(registry: str) -> dict[str, str]:
    """Entries of which none is a good peer; no more than the agent warns about one by one."""
    entries = {
        "not-a-subnet": '{"PublicIP":"192.0.2.99"}',
        "0.0.0.0-0": '{"PublicIP":"192.0.2.99"}',
        f"{OVERLAY}".replace("/", "-"): '{"PublicIP":"192.0.2.99"}',
        "10.99.1.0-24": '{"PublicIP":"192.0.2.99"}',
        "10.244.151.0-24": '{"PublicIP":"not an address"}',
        "10.244.152.0-24": "{}",
        "10.244.153.0-24": '{"PublicIP":"192.0.2.99","BackendType":"vxlan"}',
        "10.244.154.0-24": '{"PublicIP":"224.0.0.1"}',
    }
    # A value that is no JSON would be a broken file as a whole.
    return entries | ({"10.244.155.0-24": '{"PublicIP":'} if registry == "etcd" else {"10.244.155.0-24": "17"})


def test_poisoned_entries_keep_no_agent_from_starting_and_cost_no_peer(registry: str) -> None:
    with Lab(Plan(fresh_name(), hosts=2, registry=registry, agents=())) as lab:
        hand = by_hand(lab)
        entries = poison(registry)
        for key, value in entries.items():
            hand.put(key, value)
        for host in lab.hosts:
            start(host)
        wait_for_peers(lab.hosts)
        assert unanswered(lab.pods()) == []
        for host in lab.hosts:
            for key in entries:
                warnings = [line for line in log_of(host) if line.startswith("entr") and repr(key) in line]
                assert len(warnings) == 1, f"{key}: {warnings}"
            assert len(peers_of(host)) == 1
        # Nobody tidies up what is not theirs.
        assert hand.subnets().keys() > entries.keys()


def test_poison_that_comes_later_costs_no_packet_and_can_be_put_right(registry: str) -> None:
    with Lab(Plan(fresh_name(), hosts=2, registry=registry)) as lab:
        h1, h2 = up_with_peers(lab).hosts
        hand = by_hand(lab)
        entries = poison(registry) | {"10.244.160.0-24": json.dumps({"PublicIP": str(h1.underlay)})}
        with Flow(h1.pods[0], h2.pods[0]) as flow, Flow(h2.pods[0], h1.pods[0]) as back:
            for key, value in entries.items():
                hand.put(key, value)
            wait_for("h1 has seen the last one", lambda: any("'10.244.160.0-24'" in line for line in log_of(h1)))
            assert len(peers_of(h1)) == 1
            flow.wait_for_one_sent_from_now()
        assert (flow.missing, back.missing) == ([], [])
        (about_us,) = [line for line in log_of(h1) if "'10.244.160.0-24'" in line]
        assert "it has our public IP" in about_us
        # To h2 it is one more subnet of h1.
        wait_for("h2 has it", lambda: peers_of(h2).get("10.244.160.0/24") == str(h1.underlay))

        hand.put("10.244.151.0-24", '{"PublicIP":"192.0.2.17"}')
        assert wait_for("h1 has it", lambda: peers_of(h1).get("10.244.151.0/24") == "192.0.2.17") < promised(FOLLOW_S)
