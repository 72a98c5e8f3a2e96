"""An etcd whose disk space is used up: it refuses every write, and goes on answering reads."""

from __future__ import annotations

import json
import math
import time

import pytest

from flannel_udp.errors import FlannelError
from tests.faults.cluster import Member, cluster, key_of
from tests.faults.recorder import Recorder
from tests.support.agents import Log
from tests.support.labs import NEEDS_NETNS

pytestmark = [*NEEDS_NETNS, pytest.mark.usefixtures("needs_etcd")]

QUOTA_MIB = 16
LIFE_S = 20
FULL_S = 30.0
CONVERGE_S = 5.0
START_S = 10.0


def test_etcd_has_no_space_left(record: Recorder) -> None:
    """A renewal writes nothing: it keeps the etcd lease alive and compares."""
    with cluster(1, f"--quota-backend-bytes={QUOTA_MIB << 20}") as one:
        member = one.members[0]
        one.shorten_lease(one.h1, LIFE_S)
        action = (
            f"a lease of {LIFE_S} s; {QUOTA_MIB} MiB written (alarm NOSPACE), {FULL_S:g} s later made room, a change"
        )
        with record.fault("etcd, one member", "etcd full", action, *one.flows(), limit_s=CONVERGE_S) as fault:
            log = Log(one.h1)
            fill(member)
            time.sleep(FULL_S)
            assert "NOSPACE" in member.etcdctl("alarm", "list")
            make_room(member)
            started_s = time.monotonic()
            mark = one.mark(member)
            fault.wait_right(started_s, lambda: one.both_know(mark))
            fault.also = [f"{len(log.lines('lost our subnet'))} leases lost"]


def test_an_agent_is_started_again_while_etcd_is_full(record: Recorder) -> None:
    """It can be granted no lease, and the one that it had lives on."""
    with cluster(1, f"--quota-backend-bytes={QUOTA_MIB << 20}") as one:
        member, key = one.members[0], key_of(one.h1)
        action = f"{QUOTA_MIB} MiB written (alarm NOSPACE), agent stopped by SIGTERM and started again"
        with record.fault(
            "etcd, one member",
            "etcd full, agent started again",
            action,
            *one.flows(),
            limit_s=START_S,
            may_lose=math.inf,
        ) as fault:
            fill(member)
            log = Log(one.h1)
            started_s = time.monotonic()
            one.restart_agent(one.h1)
            fault.wait_right(started_s, one.h1.is_ready)
            assert key_of(one.h1) == key
            assert len(log.lines("is full (mvcc: database space exceeded)")) == 1
            make_room(member)


def fill(member: Member) -> None:
    for _ in range(2 * QUOTA_MIB):
        try:
            member.etcdctl("put", "/filler", stdin="x" * ((1 << 20) - 1))
        except FlannelError as refused:
            assert "database space exceeded" in str(refused)
            return
    raise AssertionError("etcd takes all that is written")


def make_room(member: Member) -> None:
    (status,) = json.loads(member.etcdctl("endpoint", "status", "-w", "json"))
    member.etcdctl("compact", str(status["Status"]["header"]["revision"]))
    member.etcdctl("defrag")
    member.etcdctl("alarm", "disarm")
