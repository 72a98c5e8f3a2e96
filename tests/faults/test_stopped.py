"""The agent stands still, or its control thread alone, while the lease lives and past its end."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator
from functools import partial

import pytest

from flannel_udp.lab.node import Host
from tests.faults.cluster import Cluster, cluster, key_of
from tests.faults.recorder import Recorder
from tests.support.agents import Log, wait_for
from tests.support.flow import Flow
from tests.support.labs import NEEDS_NETNS
from tests.support.standstill import standstill

pytestmark = [*NEEDS_NETNS, pytest.mark.usefixtures("needs_etcd")]

GROUP = "The agent stands still"
TWO_SUBNETS = '{"Network":"10.244.0.0/16","SubnetMin":"10.244.1.0","SubnetMax":"10.244.2.0"}'
CONVERGE_S, AT_ONCE_S = 5.0, 1.0
STILL_S = 15.0
LIFE_S = 20
"""Of a short lease: renewed every 10 s, and given up a quarter of its life before its end."""
STRANGER = '{"PublicIP":"192.0.2.99"}'


@pytest.fixture(scope="module")
def one() -> Iterator[Cluster]:
    with cluster(1, config=TWO_SUBNETS) as made:
        yield made


def control_thread(host: Host) -> int:
    pid = host.agent_pid()
    assert pid is not None
    return pid  # the thread that the process began with has its number


def is_stored(made: Cluster, host: Host) -> bool:
    return bool(made.members[0].etcdctl("get", "--keys-only", key_of(host)).strip())


class Gates:
    """Counts what a host's kernel sees of the overlay: datagrams that leave, packets that come out of flannel0."""

    def __init__(self, host: Host, port: int = 8285) -> None:
        self._host = host
        self._rules = [
            ["OUTPUT", "-p", "udp", "--dport", str(port)],
            ["FORWARD", "-i", "flannel0"],
        ]
        for rule in self._rules:
            host.run(["iptables", "-w", "-I", *rule])

    def passed(self) -> list[int]:
        """Return both counts."""
        tables = [self._host.run(["iptables", "-w", "-nvxL", rule[0], "1"]).stdout for rule in self._rules]
        return [int(table.split()[0]) for table in tables]


def test_the_control_thread_stands_still_and_etcd_is_started_again(one: Cluster, record: Recorder) -> None:
    action = f"its control thread stopped by ptrace for {STILL_S:g} s; meanwhile etcd `kill -9`, started again"
    server = one.members[0].server
    with record.fault(GROUP, "control thread stopped", action, *one.flows(), limit_s=CONVERGE_S) as fault:
        with standstill(control_thread(one.h1)):
            server.kill()
            server.start()
            mark = one.mark(one.members[0])
            time.sleep(STILL_S)
            assert not Log(one.h1).lines()
        fault.wait_right(time.monotonic(), lambda: one.both_know(mark))


def test_the_control_thread_stands_still_past_the_end_of_the_lease(one: Cluster, record: Recorder) -> None:
    one.shorten_lease(one.h1, LIFE_S)
    action = f"a lease of {LIFE_S} s; the control thread stopped by ptrace until etcd has deleted the key"
    there, back = one.flows()
    with record.fault(
        GROUP, "control thread stopped for longer", action, there, back, limit_s=CONVERGE_S, may_lose=math.inf
    ) as fault:
        with standstill(control_thread(one.h1)):
            began_s = time.monotonic()
            wait_for("the lease runs out", lambda: not is_stored(one, one.h1), 2 * LIFE_S)
            free_s = time.monotonic()
            last_s = max(there.last_arrival_s, back.last_arrival_s)
        assert last_s - began_s > LIFE_S / 4  # nothing is stopped that need not be
        assert free_s - last_s > LIFE_S / 8
        fault.also = [f"the last packet passed {free_s - last_s:.1f} s before the subnet was free"]
        fault.wait_right(
            time.monotonic(), one.h1.is_ready, *(partial(arrived_since, flow, flow.sent) for flow in (there, back))
        )


def arrived_since(flow: Flow, first: int) -> bool:
    return flow.newest >= first


def test_the_agent_is_stopped_past_the_end_of_the_lease_and_its_subnet_is_anothers(
    one: Cluster, record: Recorder
) -> None:
    """The last one here: no subnet is left for h1."""
    one.shorten_lease(one.h1, LIFE_S)
    pid, gates, key = control_thread(one.h1), Gates(one.h1), key_of(one.h1)
    action = f"a lease of {LIFE_S} s; `kill -STOP`, another host takes the subnet once it is free, `kill -CONT`"
    there, back = one.flows()
    with there, back:
        there.wait_for_one_sent_from_now()
        os.kill(pid, signal.SIGSTOP)
        wait_for("the lease runs out", lambda: not is_stored(one, one.h1), 2 * LIFE_S)
        one.members[0].etcdctl("put", key, STRANGER)
        before, log = gates.passed(), Log(one.h1)
        with record.fault(GROUP, "agent stopped", action, limit_s=AT_ONCE_S) as fault:
            resumed_s = time.monotonic()
            os.kill(pid, signal.SIGCONT)
            fault.wait_right(resumed_s, lambda: bool(log.lines("lost our subnet")))
            wait_for("that no subnet is free is said", lambda: bool(log.lines("are taken")))
            after = gates.passed()
            drops = one.h1.control("/v1/status")["counters"]["out"]["drops"]
            waiting = drops.get("lease_expired", 0) + drops.get("no_route", 0)
            fault.also = [f"{sum(after) - sum(before)} packets passed, {waiting} that had waited were dropped"]
            assert after == before
            assert waiting > 0
