"""Host-gw's routes live as long as the lease, whatever becomes of it, and of the agent."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import OVERLAY, Plan
from tests.support.agents import Log, start_agents, subnet_of, wait_for
from tests.support.by_hand import PREFIX, EtcdByHand
from tests.support.flow import Flow
from tests.support.ip_monitor import ip_monitor
from tests.support.kernel_state import lease_end_of, ours_of
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.standstill import freeze

pytestmark = [*NEEDS_NETNS, pytest.mark.usefixtures("needs_etcd")]

LIFE_S = 20
"""Of the leases: renewed every 10 s, and given up a quarter of their life before the end."""


@pytest.fixture(scope="module")
def trio() -> Iterator[Lab]:
    """Three hosts; the leases of the first two are short ones, which renewals keep as short."""
    config = {"Network": str(OVERLAY), "Backend": {"Type": "host-gw"}}
    with Lab(Plan(fresh_name(), hosts=3, pods=2, registry="etcd", config=config, agents=())) as lab:
        hand = EtcdByHand(lab)
        entries = {
            f"10.244.{number}.0-24": f'{{"PublicIP":"{host.underlay}","PublicIPv6":null,"BackendType":"host-gw"}}'
            for number, host in enumerate(lab.hosts[:2], start=1)
        }
        with hand.short_leases(entries, LIFE_S):
            start_agents(lab.hosts)
        yield lab


def key_of(host: Host) -> str:
    return str(subnet_of(host)).replace("/", "-")


def assert_right(lab: Lab, host: Host) -> None:
    """The host has a route to each of the others, which ends with the lease."""
    first = str(subnet_of(host).network_address)
    wait_for("its routes", lambda: [line.partition(" src ")[2] for line in ours_of(host)] == [first] * 2)
    wait_for("its end", lambda: (lease_end_of(host) or "").startswith(f"{first}/32 "))


def test_a_deleted_key_takes_the_routes_along_until_the_subnet_is_held_again(trio: Lab, tmp_path: Path) -> None:
    host = trio.hosts[2]
    subnet, log, told = subnet_of(host), Log(host), tmp_path / "told"

    def goes_and_comes() -> bool:  # before and after it may get another life
        gone = [line.startswith("Deleted") for line in told.read_text().splitlines() if "lo:flannel" in line]
        return gone.count(True) == 1 and not gone[-1]

    with ip_monitor(host, told, "-4", "-o", "monitor", "address"):
        EtcdByHand(trio).delete(key_of(host))
        wait_for("the loss is noticed", lambda: bool(log.lines(f"lost our subnet {subnet}")))
        wait_for("its end goes and comes", goes_and_comes)
    wait_for("ready again", host.is_ready)
    assert_right(trio, host)
    assert subnet_of(host) == subnet


def test_a_reservation_needs_no_end_and_what_becomes_one_loses_no_packet(trio: Lab) -> None:
    far, host = trio.hosts[1:]
    hand, path = EtcdByHand(trio), f"{PREFIX}/subnets/{key_of(host)}"
    value = hand.subnets()[key_of(host)]
    with Flow(host.pods[0], far.pods[0], 0.002) as there, Flow(far.pods[0], host.pods[0], 0.002) as back:
        for flow in (there, back):
            flow.wait_for_one_sent_from_now()
        hand.etcdctl("put", path, value)
        wait_for("no end", lambda: lease_end_of(host) is None)
        assert len(ours_of(host)) == 2
        assert not any(" src " in line for line in ours_of(host))
        for flow in (there, back):
            flow.wait_for_one_sent_from_now()
            flow.end()
    assert (there.missing, back.missing) == ([], [])
    hand.delete(key_of(host))  # for the next test: a lease again
    assert_right(trio, host)


def test_an_agent_that_may_open_nothing_lives_on_and_sets_the_route_when_it_may_again(trio: Lab) -> None:
    host, hand, log = trio.hosts[2], EtcdByHand(trio), Log(trio.hosts[2])
    pid = host.agent_pid()
    assert pid is not None
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        hand.put("10.244.240.0-24", '{"PublicIP":"192.0.2.90","BackendType":"host-gw"}')
        wait_for("it is told", lambda: bool(log.lines("Too many open files")))
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    wait_for("the route", lambda: any(line.startswith("10.244.240.0/24 ") for line in ours_of(host)))
    wait_for("ready", host.is_ready)
    hand.delete("10.244.240.0-24")
    assert_right(trio, host)


def test_nothing_is_forwarded_after_the_end_by_a_killed_or_a_frozen_agent(trio: Lab) -> None:
    killed, frozen, far = trio.hosts
    hand, pid = EtcdByHand(trio), frozen.agent_pid()
    assert pid is not None
    with Flow(killed.pods[0], far.pods[0]) as of_killed, Flow(frozen.pods[0], far.pods[1]) as of_frozen:
        flows = {killed: of_killed, frozen: of_frozen}
        for flow in flows.values():
            flow.wait_for_one_sent_from_now()
        freeze(pid)
        killed.kill_agent()
        sent_by_then: dict[Host, int] = {}

        def all_gone() -> bool:
            """Note when a host's routes are gone; as long as they stand, its key must be there."""
            keys = hand.subnets()
            for host in flows.keys() - sent_by_then.keys():
                if not ours_of(host):
                    sent_by_then[host] = flows[host].sent
                else:
                    assert key_of(host) in keys
            return len(sent_by_then) == len(flows)

        wait_for("the kernel removes the routes", all_gone, 2 * LIFE_S)
        assert [lease_end_of(host) for host in flows] == [None, None]
        wait_for("etcd lets the keys go", lambda: not hand.subnets().keys() & set(map(key_of, flows)), LIFE_S)
        wait_for("more is sent", lambda: all(flow.sent > sent_by_then[host] + 100 for host, flow in flows.items()))
        for host, flow in flows.items():
            assert 0 < flow.newest <= sent_by_then[host]
        log = Log(frozen)
        os.kill(pid, signal.SIGCONT)
        wait_for("the frozen one is told", lambda: bool(log.lines("lost our subnet")))
        killed.start_agent()
        for flow in flows.values():
            flow.wait_for_one_sent_from_now()


def test_a_key_that_another_host_takes_means_routes_that_hang_on_another_subnet(trio: Lab) -> None:
    """The last one here: the host's pods are cut off."""
    host, hand = trio.hosts[2], EtcdByHand(trio)
    former = subnet_of(host)
    hand.put(key_of(host), '{"PublicIP":"192.0.2.99","BackendType":"host-gw"}')
    wait_for("another subnet", lambda: subnet_of(host) != former and host.is_ready())
    hand.delete(str(former).replace("/", "-"))
    assert_right(trio, host)
