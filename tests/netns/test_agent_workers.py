"""Several workers share one tunnel device and one port: traffic is the same, and a flow stays on one of them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest

from flannel_udp.dataplane.lanes import LANES
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host, Pod
from flannel_udp.lab.plan import Plan
from flannel_udp.lab.probe import tcp_rate
from tests.support.agents import start_agents, unanswered, wait_for, wait_for_peers
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import PATIENCE_S
from tests.support.taps import Tap
from tests.support.transfer import Transfer

pytestmark = NEEDS_NETNS

T = TypeVar("T")

N_DATAGRAMS = 200
N_FLOWS = 16  # as many fall all to one of two workers once in 32,768 runs
# Until an answer comes the kernel picks the TUN queue by a hash of the flow; then it keeps to the queue on which the
# answer was written (drivers/net/tun.c, tun_flow_update). So the first packets may take another way than the rest.
FIRST_PACKETS = 3


@pytest.fixture(scope="module", params=[4, 6], ids=["IPv4", "IPv6 beside IPv4"])
def version(request: pytest.FixtureRequest) -> int:
    found: int = request.param
    return found


@pytest.fixture(scope="module")
def lab(version: int) -> Iterator[Lab]:
    with Lab(Plan(fresh_name(), hosts=2, families="4" if version == 4 else "46", agents=())) as lab:
        start_agents(lab.hosts, "--workers", "2")
        yield lab


def carried(host: Host) -> list[tuple[int, int]]:
    """Return packets out and in of each worker."""
    return [(each["packets_out"], each["packets_in"]) for each in host.control("/v1/status")["worker_packets"]]


class Growth:
    """What the workers of both hosts carry from now on."""

    def __init__(self, lab: Lab) -> None:
        self._hosts = lab.hosts
        self._before = {host: carried(host) for host in lab.hosts}

    def out(self, host: Host) -> list[int]:
        """Return the packets out of each worker, the most first."""
        return self._sorted(host, 0)

    def into(self, host: Host) -> list[int]:
        """Return the packets in of each worker, the most first."""
        return self._sorted(host, 1)

    def _sorted(self, host: Host, way: int) -> list[int]:
        pairs = zip(carried(host), self._before[host], strict=True)
        return sorted((now[way] - before[way] for now, before in pairs), reverse=True)


def undisturbed(lab: Lab, measure: Callable[[], T]) -> T:
    """Return what is measured while no agent asks its peers by echoes, which the workers carry like all else.

    An agent does so a second after the first large packets, and ten seconds after the first packet of all.
    """
    found: list[T] = []

    def is_calm() -> bool:
        with Tap(lab.hosts[0], "flannel0") as here, Tap(lab.hosts[1], "flannel0") as there:
            found[:] = [measure()]
            return not (here.saw_echoes() or there.saw_echoes())

    wait_for("agents ask nobody meanwhile", is_calm)
    return found[0]


def send_flow(source: Pod, target: Pod, version: int, n_packets: int) -> None:
    """Send datagrams that nobody answers, from one port to another, and wait until all of them have come."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with target.socket(family, socket.SOCK_DGRAM) as receiver, source.socket(family, socket.SOCK_DGRAM) as sender:
        receiver.bind((str(target.address(version)), 0))
        receiver.settimeout(PATIENCE_S)
        for _ in range(n_packets):
            sender.sendto(b"one of a flow", receiver.getsockname())
        for _ in range(n_packets):  # else an ICMP error may be on its way to the next test
            receiver.recv(100)


def test_pods_reach_each_other_through_two_workers_on_each_host(lab: Lab, version: int) -> None:
    first, second = lab.pods()
    for each in lab.plan.versions:
        assert unanswered([first, second], each) == []
    assert tcp_rate(first, second, second.address(version), duration_s=0.3) > 0
    for host in lab.hosts:
        status = host.control("/v1/status")
        assert status["workers"] == 2
        # What the kernel says on flannel0 by IPv6 is for all on its link (RFC 4861), where nobody else is.
        drops = {**status["counters"]["out"]["drops"], **status["counters"]["in"]["drops"]}
        assert drops.keys() <= ({"not_unicast"} if version == 6 else set())


def test_what_the_workers_carried_adds_up(lab: Lab) -> None:
    for host in lab.hosts:
        status = undisturbed(lab, lambda host=host: host.control("/v1/status"))  # type: ignore[misc]
        assert sum(each["packets_out"] for each in status["worker_packets"]) == status["counters"]["out"]["packets"]
        assert sum(each["packets_in"] for each in status["worker_packets"]) == status["counters"]["in"]["packets"]


@pytest.mark.parametrize("way", [0, 1], ids=["there", "back"])
def test_a_flow_of_datagrams_stays_on_one_worker_at_both_ends(lab: Lab, version: int, way: int) -> None:
    source, target = lab.pods()[way], lab.pods()[1 - way]

    def carried_of_a_flow() -> tuple[list[int], list[int]]:
        growth = Growth(lab)
        send_flow(source, target, version, N_DATAGRAMS)
        wait_for("all arrived", lambda: sum(growth.into(target.host)) >= N_DATAGRAMS)
        wait_for("all are counted", lambda: sum(growth.out(source.host)) >= N_DATAGRAMS)
        return growth.out(source.host), growth.into(target.host)

    assert undisturbed(lab, carried_of_a_flow) == ([N_DATAGRAMS, 0], [N_DATAGRAMS, 0])


def test_many_flows_are_shared_by_the_workers(lab: Lab, version: int) -> None:
    first, second = lab.pods()

    def carried_of_flows() -> list[int]:
        growth = Growth(lab)
        for _ in range(N_FLOWS):
            send_flow(first, second, version, 1)
        wait_for("all have left", lambda: sum(growth.out(first.host)) >= N_FLOWS)
        return growth.out(first.host)

    assert undisturbed(lab, carried_of_flows)[1] > 0


def test_a_tcp_connection_stays_on_one_worker_in_each_direction(lab: Lab) -> None:
    first, second = lab.pods()

    def carried_of_a_connection() -> list[list[int]]:
        growth = Growth(lab)
        with Transfer(first, second, 16 << 20):  # a busy receiver acknowledges super-packets of 64 KiB two by two
            pass
        return [carried for host in lab.hosts for carried in (growth.out(host), growth.into(host))]

    for most, least in undisturbed(lab, carried_of_a_connection):
        assert most > 10 * FIRST_PACKETS  # one side only acknowledges
        assert least <= FIRST_PACKETS


def test_a_host_with_more_workers_than_lanes_carries_packets_by_many_of_them() -> None:
    with Lab(Plan(fresh_name(), hosts=2, agents=())) as lab:
        many, one = lab.hosts
        many.start_agent(f"--workers={LANES + 1}")
        one.start_agent()
        for host in lab.hosts:
            host.wait_ready(PATIENCE_S)
            host.attach_pods()
        wait_for_peers(lab.hosts)
        first, second = lab.pods()
        assert unanswered([first, second]) == []
        for _ in range(N_FLOWS):
            send_flow(first, second, 4, 1)
        found = carried(many)
        assert len(found) == LANES + 1
        assert sum(out > 0 for out, _ in found) > 2
