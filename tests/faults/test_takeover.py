"""One agent takes over from another, and what may become of either of them meanwhile: traffic runs all the time."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from math import ceil

import pytest

from bench.takeover import Event, Successors, pass_datagrams, pass_stream
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.netns import wait_until
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import Plan
from tests.faults.cluster import flows
from tests.faults.recorder import Recorder
from tests.support.agents import Agent, Log, pid_of, subnet_of, up_with_peers, wait_for
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.patience import promised

pytestmark = NEEDS_NETNS

GROUP = "Take-over"
RATE_PPS, SECONDS, RUNS = 100_000, 4, 2
START_S, RESTART_S = 5.0, 2.0
MOMENTS, KILLS = 20, 5
BATCH = 64
"""What an agent that is killed may have had in its hands."""
HEARD_S = 0.5
"""How soon the old agent has heard that the new one has taken over, and has said so."""


@pytest.fixture
def duo() -> Iterator[Lab]:
    with Lab(Plan(fresh_name(), hosts=2)) as lab:
        yield up_with_peers(lab)


def timed(event: Event, took_s: list[float]) -> Event:
    """Return the event, which then also notes how long it took."""

    def happen() -> float | None:
        started_s = time.monotonic()
        waited_ms = event()
        took_s.append(time.monotonic() - started_s)
        return waited_ms

    return happen


# It succeeds


@pytest.mark.parametrize("who", ["sender", "receiver"])
def test_datagrams_at_a_high_rate_notice_nothing(duo: Lab, record: Recorder, who: str) -> None:
    sender, receiver = duo.hosts
    action = f"{RUNS} times a second agent with `--takeover`; {RATE_PPS:,} datagrams a second"
    with (
        Successors(sender if who == "sender" else receiver) as successors,
        record.fault(GROUP, f"the {who}'s agent is taken over", action, limit_s=START_S) as fault,
    ):
        took_s: list[float] = []
        passages = [
            pass_datagrams(sender, receiver, RATE_PPS, promised(SECONDS), timed(successors.next, took_s))
            for _ in range(RUNS)
        ]
        fault.took_s = max(took_s)
        fault.sent, fault.lost = sum(each.sent for each in passages), sum(each.lost for each in passages)
        reordered, waited_ms = sum(each.reordered for each in passages), max(each.waited_ms or 0 for each in passages)
        fault.also = [f"{reordered} reordered", f"nobody read for {waited_ms:.1f} ms at most"]
        assert reordered == 0


@pytest.mark.parametrize("who", ["sender", "receiver"])
def test_a_tcp_stream_loses_nothing(duo: Lab, record: Recorder, who: str) -> None:
    sender, receiver = duo.hosts
    action = "a second agent with `--takeover`; one TCP stream, and 1,000 datagrams a second"
    with (
        Successors(sender if who == "sender" else receiver) as successors,
        record.fault(GROUP, f"the {who}'s agent is taken over, TCP", action, limit_s=START_S) as fault,
    ):
        took_s: list[float] = []
        stream = pass_stream(sender, receiver, ceil(promised(SECONDS)), timed(successors.next, took_s))
        (fault.took_s,) = took_s
        fault.sent, fault.lost = stream.beside.sent, stream.beside.lost
        fault.also = [f"TCP: {stream.gbits:.1f} Gbit/s, {stream.lost} segments lost, {stream.again} sent again"]
        assert stream.lost == 0


# It fails


def test_a_new_agent_that_is_killed_at_any_moment_disturbs_nothing(duo: Lab, record: Recorder) -> None:
    h1 = duo.hosts[0]
    dice = random.Random(4)
    there, back = flows(duo)
    action = f"`--takeover`, `kill -9` of the new agent at {MOMENTS} random moments before it has taken over"
    with (
        ExitStack() as agents,
        record.fault(GROUP, "the new agent is killed", action, there, back, limit_s=RESTART_S) as fault,
    ):
        takes_s = take_over(h1, agents)
        killed = asked = 0
        longest_s = 0.0
        while killed < MOMENTS:
            old, log = pid_of(h1), Log(h1)
            agent = agents.enter_context(Agent(h1, "--takeover"))
            time.sleep(dice.uniform(0, takes_s))
            if not kill_in_time(agent, log):
                agent.wait_for_take_over(old)
                continue
            killed_s = time.monotonic()
            killed += 1
            asked += has_asked(agent, log)
            there.wait_for_one_sent_from_now()
            back.wait_for_one_sent_from_now()
            longest_s = max(longest_s, time.monotonic() - killed_s)
            assert pid_of(h1) == old
        fault.took_s = longest_s
        fault.also = [f"in {asked} of them the hand-over had begun"]


def has_asked(agent: Agent, log: Log) -> bool:
    return bool(log.lines(f"process {agent.process.pid} takes over"))


def take_over(host: Host, agents: ExitStack) -> float:
    """Let an agent take over, and return how long that took."""
    old, started_s = pid_of(host), time.monotonic()
    agent = agents.enter_context(Agent(host, "--takeover"))
    agent.wait_for_line("took over from process")
    took_s = time.monotonic() - started_s
    agent.wait_for_take_over(old)
    return took_s


def kill_in_time(agent: Agent, log: Log) -> bool:
    """Kill it, unless it has taken over: that is only known for sure while it stands still."""
    agent.process.send_signal(signal.SIGSTOP)
    over = f"over to process {agent.process.pid}"
    if wait_until(lambda: bool(log.lines(over)) or taken_over(agent), promised(HEARD_S)):
        agent.process.send_signal(signal.SIGCONT)
        return False
    agent.process.kill()
    agent.process.wait()
    return True


def taken_over(agent: Agent) -> bool:
    return any("took over from process" in line for line in agent.said())


def test_an_old_agent_that_is_killed_leaves_all_to_the_new_one(duo: Lab, record: Recorder) -> None:
    h1 = duo.hosts[0]
    subnet = subnet_of(h1)
    there, back = flows(duo)
    action = f"{KILLS} times `--takeover`, and `kill -9` of the old agent as soon as it has been asked"
    with (
        ExitStack() as agents,
        record.fault(
            GROUP, "the old agent is killed", action, there, back, limit_s=RESTART_S, may_lose=KILLS * BATCH
        ) as fault,
    ):
        longest_s = 0.0
        for _ in range(KILLS):
            old, log = pid_of(h1), Log(h1)
            agent = agents.enter_context(Agent(h1, "--takeover"))
            wait_for("the old one is asked", partial(has_asked, agent, log))
            os.kill(old, signal.SIGKILL)
            killed_s = time.monotonic()
            there.wait_for_one_sent_from_now()
            back.wait_for_one_sent_from_now()
            longest_s = max(longest_s, time.monotonic() - killed_s)
            agent.wait_for_line(f"took over from process {old}")
            agent.wait_ready()
            assert (pid_of(h1), subnet_of(h1)) == (agent.process.pid, subnet)
        fault.took_s = longest_s
