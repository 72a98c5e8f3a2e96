"""The kernel's VXLAN carries nothing after the lease's end, whatever becomes of the agent."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, Plan
from tests.support.agents import Log, start_agents, subnet_of, wait_for
from tests.support.by_hand import PREFIX, EtcdByHand
from tests.support.by_hand_vxlan import vxlan_value
from tests.support.flow import Flow
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import PATIENCE_S
from tests.support.vxlan_state import addresses_of, entries_of, life_of

pytestmark = [*NEEDS_NETNS, pytest.mark.usefixtures("needs_etcd")]

LIFE_S = 80
"""Of the leases: given up a quarter of it before the end, in which a busy machine has to look at both hosts."""


@pytest.fixture(scope="module")
def trio() -> Iterator[Lab]:
    """Three hosts; the leases of the first two are short ones, which renewals keep as short."""
    config = {"Network": str(OVERLAY), "Backend": {"Type": "vxlan"}}
    with Lab(Plan(fresh_name(), hosts=3, pods=2, registry="etcd", config=config, agents=())) as lab:
        entries = {
            f"10.244.{number}.0-24": vxlan_value(host.underlay, f"0a:00:00:00:00:0{number}")
            for number, host in enumerate(lab.hosts[:2], start=1)
        }
        with EtcdByHand(lab).short_leases(entries, LIFE_S):
            start_agents(lab.hosts, "--datapath=kernel")
        yield lab


def key_of(host: Host) -> str:
    return str(subnet_of(host)).replace("/", "-")


def routes_of(host: Host) -> list[str]:
    return [line for line in entries_of(host) if line.startswith(("route ", "neighbour "))]


def test_the_mac_that_the_entry_names_is_the_devices(trio: Lab) -> None:
    for number, host in enumerate(trio.hosts[:2], start=1):
        (link,) = host.run(["ip", "-br", "link", "show", "flannel.1"]).stdout.splitlines()
        assert f"0a:00:00:00:00:0{number}" in link


def test_a_reservation_has_no_end_and_what_becomes_one_loses_no_packet(trio: Lab) -> None:
    far, host = trio.hosts[1:]
    hand, path = EtcdByHand(trio), f"{PREFIX}/subnets/{key_of(host)}"
    value = hand.subnets()[key_of(host)]
    with Flow(host.pods[0], far.pods[0], 0.002) as there, Flow(far.pods[0], host.pods[0], 0.002) as back:
        for flow in (there, back):
            flow.wait_for_one_sent_from_now()
        hand.etcdctl("put", path, value)
        wait_for("no end", lambda: life_of(host) == "forever")
        for flow in (there, back):
            flow.wait_for_one_sent_from_now()
            flow.end()
    assert (there.missing, back.missing) == ([], [])


def test_nothing_is_forwarded_after_the_end_by_a_killed_or_a_frozen_agent(trio: Lab) -> None:
    killed, frozen, far = trio.hosts
    hand, pid = EtcdByHand(trio), frozen.agent_pid()
    assert pid is not None
    with Flow(killed.pods[0], far.pods[0]) as of_killed, Flow(frozen.pods[0], far.pods[1]) as of_frozen:
        flows = {killed: of_killed, frozen: of_frozen}
        for flow in flows.values():
            flow.wait_for_one_sent_from_now()
        os.kill(pid, signal.SIGSTOP)
        killed.kill_agent()
        sent_by_then: dict[Host, int] = {}

        def all_gone() -> bool:
            """Note when a host's routes are gone; its key must still be there."""
            gone = {host: flows[host].sent for host in flows.keys() - sent_by_then.keys() if not routes_of(host)}
            sent_by_then.update(gone)
            assert not gone or set(map(key_of, gone)) <= hand.subnets().keys()
            return len(sent_by_then) == len(flows)

        wait_for("the kernel removes routes and neighbours", all_gone, LIFE_S + PATIENCE_S)
        assert [addresses_of(host) for host in flows] == [[], []]
        wait_for("etcd lets the keys go", lambda: not hand.subnets().keys() & set(map(key_of, flows)))
        for host, flow in flows.items():
            assert 0 < flow.newest <= sent_by_then[host] < flow.sent - 10
        log = Log(frozen)
        os.kill(pid, signal.SIGCONT)
        wait_for("the frozen one is told", lambda: bool(log.lines("lost our subnet")))
        killed.start_agent("--datapath=kernel")
        for flow in flows.values():
            flow.wait_for_one_sent_from_now()
