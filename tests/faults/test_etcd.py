"""What becomes of a single etcd, and of what is written in it: traffic runs between two pods all the time."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.cluster import NETWORK, Cluster, Member, cluster, key_of
from tests.faults.recorder import Recorder
from tests.support.agents import Log, subnet_of, wait_for
from tests.support.by_hand import PREFIX
from tests.support.labs import NEEDS_NETNS

pytestmark = [*NEEDS_NETNS, pytest.mark.usefixtures("needs_etcd")]

GROUP = "etcd, one member"
STORED = "What is written in etcd"
CONVERGE_S = 5.0
NOTICED_S = 15.0
"""By then it is noticed that nobody answers."""
AWAY_S = 60.0
REST_S, WORK_S = 0.8, 0.05
JUNK_KEYS = 10_000


@pytest.fixture(scope="module")
def one() -> Iterator[Cluster]:
    with cluster(1) as made:
        yield made


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_etcd_is_killed(one: Cluster, record: Recorder) -> None:
    server = one.members[0].server
    with record.fault(GROUP, "etcd killed", "`kill -9`, started again", *one.flows(), limit_s=CONVERGE_S) as fault:
        server.kill()
        server.start()
        back_s = time.monotonic()
        mark = one.mark(one.members[0])
        fault.wait_right(back_s, lambda: one.both_know(mark))


def test_etcd_hangs(one: Cluster, record: Recorder) -> None:
    action = f"`kill -STOP`, `kill -CONT` {NOTICED_S:g} s later"
    with record.fault(GROUP, "etcd hangs", action, *one.flows(), limit_s=CONVERGE_S) as fault:
        one.members[0].signal(signal.SIGSTOP)
        time.sleep(NOTICED_S)
        one.members[0].signal(signal.SIGCONT)
        back_s = time.monotonic()
        mark = one.mark(one.members[0])
        fault.wait_right(back_s, lambda: one.both_know(mark))


def test_etcd_is_slow(one: Cluster, record: Recorder) -> None:
    action = f"`kill -STOP`, `kill -CONT` {REST_S:g} s later, again and again; a change after {NOTICED_S:g} s of this"
    with record.fault(GROUP, "etcd slow", action, *one.flows(), limit_s=CONVERGE_S) as fault:
        log = Log(one.h1)
        with sluggish(one.members[0]):
            time.sleep(NOTICED_S)
            started_s = time.monotonic()
            mark = one.write(one.members[0])
            fault.wait_right(started_s, lambda: one.both_know(mark))
        assert log.lines() == [line for line in log.lines() if "peer" in line]  # slow is not silent


@contextmanager
def sluggish(member: Member) -> Iterator[None]:
    """Let a member work for a moment after every rest only."""
    ending = threading.Event()

    def interrupt() -> None:
        while not ending.is_set():
            member.signal(signal.SIGSTOP)
            ending.wait(REST_S)
            member.signal(signal.SIGCONT)
            ending.wait(WORK_S)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()


def test_etcd_is_away_for_a_minute(one: Cluster, record: Recorder) -> None:
    server, log, pid = one.members[0].server, Log(one.h1), one.h1.agent_pid() or 0
    with record.fault(GROUP, "etcd away", f"`kill -9`, started {AWAY_S:g} s later", limit_s=CONVERGE_S) as fault:
        server.kill()
        used_s = cpu_s(pid)
        time.sleep(AWAY_S)
        share = (cpu_s(pid) - used_s) / AWAY_S
        server.start()
        back_s = time.monotonic()
        mark = one.mark(one.members[0])
        fault.wait_right(back_s, lambda: one.both_know(mark))
        fault.also = [f"agent's CPU {share:.2%}", f"{len(log.lines())} log lines"]
    assert share < 0.02
    assert len(log.lines()) <= 20


def test_history_is_compacted_while_all_is_quiet(one: Cluster, record: Recorder) -> None:
    action = "`etcdctl compact` at the present revision"
    with record.fault(GROUP, "compacted, agent idle", action, *one.flows(), limit_s=CONVERGE_S) as fault:
        compact(one)
        started_s = time.monotonic()
        mark = one.mark(one.members[0])
        fault.wait_right(started_s, lambda: one.both_know(mark))


def test_history_is_compacted_while_we_are_cut_off(one: Cluster, record: Recorder) -> None:
    """Only the way to etcd is cut: the agents themselves reach each other."""
    action = f"etcd firewalled off (iptables), {NOTICED_S:g} s later a change, `etcdctl compact`, let through again"
    rule = ["OUTPUT", "-p", "tcp", "--dport", "2379", "-j", "DROP"]
    with record.fault(GROUP, "compacted, agent cut off", action, *one.flows(), limit_s=CONVERGE_S) as fault:
        one.h1.run(["iptables", "-w", "-A", *rule])
        time.sleep(NOTICED_S)
        mark = one.mark(one.members[0])
        compact(one)
        one.h1.run(["iptables", "-w", "-D", *rule])
        fault.wait_right(time.monotonic(), lambda: one.both_know(mark))


def compact(made: Cluster) -> None:
    (status,) = json.loads(made.members[0].etcdctl("endpoint", "status", "-w", "json"))
    made.members[0].etcdctl("compact", str(status["Status"]["header"]["revision"]))


def test_our_key_is_deleted(one: Cluster, record: Recorder) -> None:
    subnet = subnet_of(one.h1)
    with record.fault(
        STORED, "our key deleted", "`etcdctl del`", *one.flows(), limit_s=CONVERGE_S, may_lose=math.inf
    ) as fault:
        log = Log(one.h1)
        started_s = time.monotonic()
        one.members[0].etcdctl("del", key_of(one.h1))
        fault.wait_right(started_s, lambda: bool(log.lines("lost our subnet")), one.h1.is_ready)
    assert subnet_of(one.h1) == subnet


def test_the_data_directory_is_wiped(one: Cluster, record: Recorder) -> None:
    member = one.members[0]
    action = "`kill -9`, data directory removed, started, configuration written"
    with record.fault(GROUP, "etcd's data lost", action, *one.flows(), limit_s=CONVERGE_S, may_lose=math.inf) as fault:
        member.server.kill()
        member.wipe()
        member.server.start()
        member.etcdctl("put", f"{PREFIX}/config", NETWORK)
        back_s = time.monotonic()
        mark = one.mark(member)
        fault.wait_right(back_s, lambda: one.both_know(mark), one.h1.is_ready, one.h2.is_ready, lambda: knows_both(one))


def knows_both(made: Cluster) -> bool:
    return made.knows(made.h1, f"{made.h2.subnet} {made.h2.underlay}") and made.knows(
        made.h2, f"{made.h1.subnet} {made.h1.underlay}"
    )


def test_the_store_is_poisoned(one: Cluster, record: Recorder) -> None:
    member, log = one.members[0], Log(one.h1)
    poison = {
        "not-a-subnet": '{"PublicIP":"192.0.2.99"}',
        "10.244.151.0-24": '{"PublicIP":',
        "0.0.0.0-0": '{"PublicIP":"192.0.2.99"}',
        "10.244.0.0-17": '{"PublicIP":"192.0.2.99"}',  # overlaps everything: the longer prefixes win
        "10.244.152.0-24": f'{{"PublicIP":"{one.h1.underlay}"}}',
    }
    action = f"a bad key, bad JSON, a /0, an overlap, our own address, a 1 MiB value, {JUNK_KEYS:,} junk keys"
    with record.fault(STORED, "poisoned store", action, *one.flows(), limit_s=CONVERGE_S) as fault:
        for key, value in poison.items():
            member.etcdctl("put", f"{PREFIX}/subnets/{key}", value)
        member.etcdctl("put", f"{PREFIX}/subnets/10.244.153.0-24", stdin="x" * ((1 << 20) - 1))
        for first in range(0, JUNK_KEYS, 100):
            puts = "".join(f'put "{PREFIX}/subnets/junk{n}" "?"\n' for n in range(first, first + 100))
            member.etcdctl("txn", stdin=f"\n{puts}\n\n")
        started_s = time.monotonic()
        mark = one.mark(member)
        fault.wait_right(started_s, lambda: one.both_know(mark), lambda: knows_both(one))
        fault.also = [f"{len(log.lines())} log lines"]
    for key in poison:
        assert len(log.lines(repr(key))) <= 1
    wait_for("it has come to rest", lambda: resting(log))
    member.etcdctl("del", "--prefix", f"{PREFIX}/subnets/junk")
    for key in (*poison, "10.244.153.0-24"):
        member.etcdctl("del", f"{PREFIX}/subnets/{key}")


def resting(log: Log) -> bool:
    before = len(log.lines())
    time.sleep(2.0)
    return len(log.lines()) == before


def test_our_key_is_taken(one: Cluster, record: Recorder) -> None:
    """The last one here: h1 has another subnet afterwards, and its pods are the operator's."""
    former = subnet_of(one.h1)
    with record.fault(STORED, "our key taken by another", "`etcdctl put`", limit_s=CONVERGE_S) as fault:
        started_s = time.monotonic()
        one.members[0].etcdctl("put", key_of(one.h1), '{"PublicIP":"192.0.2.99"}')
        fault.wait_right(started_s, lambda: subnet_of(one.h1) != former and one.h1.is_ready())
        fault.wait_right(started_s, lambda: one.knows(one.h2, f"{one.h1.subnet} {one.h1.underlay}"))
