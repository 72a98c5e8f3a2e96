"""What becomes of an etcd of three members: traffic runs between two pods all the time."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from flannel_udp.errors import FlannelError
from tests.faults.cluster import Cluster, Member, cluster
from tests.faults.recorder import Recorder
from tests.support.labs import NEEDS_NETNS

pytestmark = [*NEEDS_NETNS, pytest.mark.usefixtures("needs_etcd")]

GROUP = "etcd, three members"
CONVERGE_S = 5.0
HANGING_S = 15.0
"""A member that hangs is found by pings after 6 + 3 s, and only then can the next one be asked: 5 s more."""


@pytest.fixture(scope="module")
def three() -> Iterator[Cluster]:
    with cluster(3) as made:
        yield made


def kill(member: Member) -> None:
    member.server.kill()


def hang(member: Member) -> None:
    member.signal(signal.SIGSTOP)


def wall_off(member: Member) -> None:
    member.host.run(["iptables", "-A", "INPUT", "-i", "eth0", "-j", "DROP"])
    member.host.run(["iptables", "-A", "OUTPUT", "-o", "eth0", "-j", "DROP"])


def revive(made: Cluster, member: Member) -> None:
    """Bring a member back, whatever was done to it."""
    member.host.run(["iptables", "-F"])
    try:
        member.signal(signal.SIGCONT)
    except FlannelError:  # it was killed
        member.server.spawn([each.server for each in made.members])
        member.server.wait_ready()


class Failure(NamedTuple):
    """A way for a member to fail."""

    what: str
    action: str
    do: Callable[[Member], None]
    limit_s: float


FAILURES = [
    Failure("killed", "`kill -9`", kill, CONVERGE_S),
    Failure("hangs", "`kill -STOP`", hang, HANGING_S),
    Failure("firewalled off", "iptables drops everything", wall_off, HANGING_S),
]


@pytest.mark.parametrize("role", ["leader", "follower"])
@pytest.mark.parametrize("failure", FAILURES, ids=[failure.what for failure in FAILURES])
def test_a_member_fails(three: Cluster, record: Recorder, role: str, failure: Failure) -> None:
    leader = three.leader()
    victim = leader if role == "leader" else next(each for each in three.members if each is not leader)
    other = next(each for each in three.members if each not in (leader, victim))
    three.start_agents(victim)  # a member that the agents do not use could fail without anybody noticing
    try:
        with record.fault(
            GROUP, f"{role} {failure.what}", failure.action, *three.flows(), limit_s=failure.limit_s
        ) as fault:
            started_s = time.monotonic()
            failure.do(victim)
            mark = write(three, other)
            fault.also = [f"etcd took a write after {time.monotonic() - started_s:.1f} s"]
            fault.wait_right(time.monotonic(), lambda: three.both_know(mark))
    finally:
        revive(three, victim)


def write(made: Cluster, member: Member) -> str:
    """Write as soon as the cluster has a leader again."""
    for _ in range(100):
        try:
            return made.mark(member)
        except FlannelError:  # no leader yet
            time.sleep(0.1)
    raise AssertionError("nothing can be written to what is left of the cluster")
