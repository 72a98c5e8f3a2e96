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
WITHOUT_S = 15.0


@pytest.fixture(scope="module")
def three() -> Iterator[Cluster]:
    with cluster(3, spare=1) as made:
        yield made


def kill(member: Member) -> None:
    member.server.kill()


def hang(member: Member) -> None:
    member.signal(signal.SIGSTOP)


def wall_off(member: Member) -> None:
    member.host.run(["iptables", "-w", "-A", "INPUT", "-i", "eth0", "-j", "DROP"])
    member.host.run(["iptables", "-w", "-A", "OUTPUT", "-o", "eth0", "-j", "DROP"])


def revive(made: Cluster, member: Member) -> None:
    """Bring a member back, whatever was done to it."""
    member.host.run(["iptables", "-w", "-F"])
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


FAILURES = [
    Failure("killed", "`kill -9`", kill),
    Failure("hangs", "`kill -STOP`", hang),
    Failure("firewalled off", "iptables drops everything", wall_off),
]


@pytest.mark.parametrize("role", ["leader", "follower"])
@pytest.mark.parametrize("failure", FAILURES, ids=[failure.what for failure in FAILURES])
def test_a_member_fails(three: Cluster, record: Recorder, role: str, failure: Failure) -> None:
    leader = three.leader()
    victim = leader if role == "leader" else next(each for each in three.members if each is not leader)
    other = next(each for each in three.members if each not in (leader, victim))
    three.start_agents(victim)  # a member that the agents do not use could fail without anybody noticing
    try:
        name = f"{role} {failure.what}"
        with record.fault(GROUP, name, failure.action, *three.flows(), limit_s=CONVERGE_S) as fault:
            started_s = time.monotonic()
            failure.do(victim)
            mark = three.write(other)
            fault.also = [f"etcd took a write after {time.monotonic() - started_s:.1f} s"]
            fault.wait_right(time.monotonic(), lambda: three.both_know(mark))
    finally:
        revive(three, victim)


def test_most_members_are_away_for_a_while(three: Cluster, record: Recorder) -> None:
    leader = three.leader()
    left, *followers = [member for member in three.members if member is not leader]
    three.start_agents(left)
    action = f"`kill -9` of the leader and a follower, {WITHOUT_S:g} s later one of them started again"
    with record.fault(GROUP, "no majority", action, *three.flows(), limit_s=CONVERGE_S) as fault:
        kill(leader)
        kill(followers[0])
        time.sleep(WITHOUT_S)
        revive(three, leader)
        mark = three.write(left)
        fault.wait_right(time.monotonic(), lambda: three.both_know(mark))
    revive(three, followers[0])


def test_a_member_is_replaced(three: Cluster, record: Recorder) -> None:
    """The last one here: the agents' flags still name the member that is gone, and not the new one."""
    leader = three.leader()
    others = [member for member in three.members if member is not leader]
    three.start_agents(leader)
    new = Member(three.spare[0], "--initial-cluster-state=existing")
    three.members.append(new)
    action = "`kill -9` of the leader, `etcdctl member remove`; a new one with another address: `member add`, started"
    with record.fault(GROUP, "member replaced", action, *three.flows(), limit_s=CONVERGE_S) as fault:
        kill(leader)
        three.members.remove(leader)
        three.write(others[0])  # the members that are left have elected a leader
        new.replace(leader, others)
        mark = three.write(new)
        fault.wait_right(time.monotonic(), lambda: three.both_know(mark))
