"""An agent with the kernel's VXLAN ends and comes back, or comes after flanneld, under traffic: no packet is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from flannel_udp.lab.kernel_vxlan import KernelPeer
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, Plan
from flannel_udp.lab.probe import ping
from tests.support.agents import WITH_TIME_TO_CLEAN_UP, Agent, Log, pid_of, subnet_of, up_with_peers, wait_for
from tests.support.by_hand import by_hand
from tests.support.by_hand_vxlan import LeasedVxlan, join_by_hand, mac_of, vxlan_value
from tests.support.flow import Flow
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.mixed import OURS, THEIRS
from tests.support.vxlan_state import DEVICE, addresses_of, entries_for, entries_of, has_device, life_of, link_of, peer

pytestmark = NEEDS_NETNS

INTERVAL_S = 0.0005
"""Of each flow: what Python makes of it is about 1,000 packets a second."""
KERNEL = "--datapath=kernel"


@pytest.fixture(scope="module")
def shared() -> Iterator[Lab]:
    config = {"Network": str(OVERLAY), "Backend": {"Type": "vxlan"}}
    with Lab(Plan(fresh_name(), hosts=2, config=config, agent_args=(KERNEL,))) as lab:
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
        yield
        for flow in (there, back):
            flow.wait_for_one_sent_from_now()
            flow.end()
    assert (there.missing, back.missing) == ([], [])


def entries_to(host: Host) -> list[str]:
    return sorted(entries_for(KernelPeer(subnet_of(host), host.underlay, mac_of(host))))


def key_of(host: Host) -> str:
    return str(subnet_of(host)).replace("/", "-")


def test_kill_9_and_a_start_lose_nothing_and_change_neither_device_nor_value(duo: Lab) -> None:
    h1, h2 = duo.hosts
    before, entry = link_of(h1), json.loads(by_hand(duo).subnets()[key_of(h1)])
    with nothing_lost(duo):
        h1.kill_agent()
        assert entries_of(h1) == entries_to(h2)
        h1.start_agent()
        h1.wait_ready()
        h1.wait_peers({subnet_of(h2)})
    assert link_of(h1) == before
    assert json.loads(by_hand(duo).subnets()[key_of(h1)])["BackendData"] == entry["BackendData"]
    assert entries_of(h1) == entries_to(h2)
    assert (life_of(h1) or "").endswith("sec")


def test_sigterm_leaves_all_for_good_and_a_start_lets_it_end_with_the_lease_again(duo: Lab) -> None:
    h1, h2 = duo.hosts
    with nothing_lost(duo):
        h1.stop_agent()
        assert entries_of(h1) == entries_to(h2)
        assert life_of(h1) == "forever"
        h1.start_agent()
        h1.wait_ready()
        h1.wait_peers({subnet_of(h2)})
    wait_for("it ends with the lease", lambda: (life_of(h1) or "").endswith("sec"))


def test_a_take_over_loses_nothing(duo: Lab) -> None:
    h1, h2 = duo.hosts
    old, log, before = pid_of(h1), Log(h1), link_of(h1)
    with nothing_lost(duo), Agent(h1, "--takeover", KERNEL) as agent:
        agent.wait_for_take_over(old)
        h1.wait_peers({subnet_of(h2)})
        assert (link_of(h1), entries_of(h1)) == (before, entries_to(h2))
        assert agent.stop() == 0
    assert log.lines("put right") == log.complaints() == []


def test_peers_that_left_or_moved_while_no_agent_ran_are_cleaned_up_at_the_start(duo: Lab) -> None:
    h1, h2 = duo.hosts
    hand = by_hand(duo)
    gone, moved = (peer(f"10.244.{n}.0/24", f"192.0.2.{n - 150}", f"0a:00:00:00:00:{n - 200}") for n in (240, 241))
    now = peer("10.244.241.0/24", "192.0.2.99", "0a:00:00:00:00:99")
    for each in (gone, moved):
        hand.put(str(each.subnet).replace("/", "-"), vxlan_value(each.public_ip, each.mac))
    before = sorted([*entries_to(h2), *entries_for(gone), *entries_for(moved)])
    wait_for("their entries", lambda: entries_of(h1) == before)
    h1.stop_agent()
    hand.delete("10.244.240.0-24")
    hand.put("10.244.241.0-24", vxlan_value(now.public_ip, now.mac))
    h1.start_agent()
    h1.wait_ready()
    expected = sorted([*entries_to(h2), *entries_for(now)])
    wait_for("those of today", lambda: entries_of(h1) == expected)
    hand.delete("10.244.241.0-24")
    wait_for("it is gone", lambda: entries_of(h1) == entries_to(h2))


def test_with_clean_on_exit_nothing_is_left(duo: Lab) -> None:
    h1 = duo.hosts[0]
    h1.stop_agent()
    mac = mac_of(h1)
    with Agent(h1, "--clean-on-exit", KERNEL) as agent:
        agent.wait_ready()
        assert agent.stop() == 0
    assert not has_device(h1)
    h1.start_agent()
    h1.wait_ready()
    assert mac_of(h1) == mac  # our entry says it


def test_with_release_on_exit_nothing_is_carried_before_the_key_goes(duo: Lab) -> None:
    h1 = duo.hosts[0]
    h1.stop_agent()
    with Agent(h1, "--release-on-exit", KERNEL, program=WITH_TIME_TO_CLEAN_UP) as agent:
        agent.wait_ready()
        assert agent.stop() == 0
    assert entries_of(h1) == []
    assert addresses_of(h1) == []
    assert "UP" not in link_of(h1)["flags"]


def test_a_lost_lease_stops_everything_and_the_next_one_starts_it(duo: Lab) -> None:
    h1, h2 = duo.hosts
    log, subnet, mac = Log(h1), subnet_of(h1), mac_of(h1)
    by_hand(duo).delete(key_of(h1))
    wait_for("it is lost", lambda: bool(log.lines(f"lost our subnet {subnet}")))
    wait_for("ready", h1.is_ready)
    wait_for("the entries", lambda: entries_of(h1) == entries_to(h2))
    assert mac_of(h1) == mac
    p1, p2 = duo.pods()
    wait_for("traffic", lambda: ping(p1, [p2.ip], timeout_s=0.3) != [None])


# After flanneld


@pytest.fixture
def flannelds() -> Iterator[Lab]:
    """Two hosts set up by hand as flanneld leaves them, with a peer on h1 that has left meanwhile."""
    config = {"Network": str(OVERLAY), "Backend": {"Type": "vxlan"}}
    with Lab(Plan(fresh_name(), hosts=2, config=config, agents=(), agent_args=(KERNEL,))) as lab:
        h1, h2 = lab.hosts
        ours, theirs = join_by_hand(h1, OURS), join_by_hand(h2, THEIRS)
        ours.learn()
        ours.add(peer("10.244.9.0/24", "192.0.2.9", "0a:00:00:00:00:09"))
        theirs.learn()
        yield lab


def test_flannelds_device_is_taken_over_without_losing_a_packet_and_what_left_is_cleaned_up(flannelds: Lab) -> None:
    h1, h2 = flannelds.hosts
    mac, index = mac_of(h1), link_of(h1)["ifindex"]
    stays = KernelPeer(THEIRS, h2.underlay, mac_of(h2))
    with nothing_lost(flannelds), Agent(h1, KERNEL) as agent:
        agent.wait_ready()
        wait_for("ours", lambda: entries_of(h1) == sorted(entries_for(stays)))
        assert (mac_of(h1), link_of(h1)["ifindex"]) == (mac, index)
        assert not any("not ours" in line for line in agent.said())
        value = json.loads(by_hand(flannelds).subnets()["10.244.1.0-24"])
        assert value["BackendData"] == {"VNI": 1, "VtepMAC": mac}


@pytest.mark.parametrize("datapath", ["kernel", "userspace"])
def test_flannelds_direct_routes_are_taken_over_without_losing_a_packet(datapath: str) -> None:
    backend = {"Type": "vxlan", "DirectRouting": True}
    args = (f"--datapath={datapath}",)
    plan = Plan(fresh_name(), hosts=2, config={"Network": str(OVERLAY), "Backend": backend}, agents=(), agent_args=args)
    with Lab(plan) as lab:
        h1, h2 = lab.hosts
        for host, own, other, to in ((h1, OURS, h2, THEIRS), (h2, THEIRS, h1, OURS)):
            LeasedVxlan(host, own).register()
            host.configure(f"route add {to} via {other.underlay}")  # as flanneld has it, of protocol boot
        with nothing_lost(lab), Agent(h1, *args) as agent:
            agent.wait_ready()
            wait_for("ours", lambda: "proto 82" in h1.run(["ip", "route", "show", str(THEIRS)]).stdout)
            assert f"via {h2.underlay} dev eth0" in h1.run(["ip", "route", "show", str(THEIRS)]).stdout
            assert h1.control("/v1/status")["degraded"] == []
            assert not any("not ours" in line for line in agent.said())


def test_flannelds_device_with_other_settings_is_made_anew_as_our_entry_names_it(flannelds: Lab) -> None:
    h1 = flannelds.hosts[0]
    mac, index = mac_of(h1), link_of(h1)["ifindex"]
    config = {"Network": str(OVERLAY), "Backend": {"Type": "vxlan", "Port": 8473}}
    by_hand(flannelds).configure(config)
    with Agent(h1, KERNEL) as agent:
        agent.wait_ready()
        assert mac_of(h1) == mac
        assert link_of(h1)["ifindex"] != index
        assert link_of(h1)["linkinfo"]["info_data"]["port"] == 8473


def test_flannelds_device_of_another_vni_goes_once_ours_stands(flannelds: Lab) -> None:
    h1 = flannelds.hosts[0]
    by_hand(flannelds).configure({"Network": str(OVERLAY), "Backend": {"Type": "vxlan", "VNI": 7}})
    with Agent(h1, KERNEL) as agent:
        agent.wait_ready()
        agent.wait_for_line(f"removed what an earlier run left: the device {DEVICE}")
        assert has_device(h1, "flannel.7")
        assert not has_device(h1)
