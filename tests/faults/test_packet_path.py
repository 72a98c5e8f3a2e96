"""What the kernel refuses the packet path while a TCP stream runs between two pods."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median

import pytest

from flannel_udp.lab.lab import Lab
from flannel_udp.lab.node import Host
from flannel_udp.lab.plan import Plan
from flannel_udp.options import Offload
from tests.faults.recorder import Recorder
from tests.support.agents import Agent, subnet_of, wait_for
from tests.support.labs import NEEDS_NETNS, fresh_name
from tests.support.refusals import Refusal, wrapper
from tests.support.transfer import Transfer

pytestmark = NEEDS_NETNS

GROUP = "The packet path"
TRANSFER_BYTES = 1 << 20
MEASURED_S = 3.0
ROUNDS = 5
BEGIN_S = 5.0
N_TRIES_MAX = 10  # those of the batch in which the first is refused, and one every 10 s
SUPER_PACKETS = Refusal("writev", errno.EINVAL, at_least={2: 3})
"""The kernel takes a packet, which has one or two pieces, and no super-packet, which has three or more."""
WITHOUT_JOINS = ",".join(name for name in Offload().names() if not name.startswith("join"))


@contextmanager
def agents(lab: Lab, *arguments: str) -> Iterator[Host]:
    """Run an agent on each host; the receiver's has these arguments and the filter. Yields the receiver.

    Filtered it is with any arguments: each system call of such a process takes longer.
    """
    sender, receiver = lab.hosts
    with Agent(sender) as first, Agent(receiver, *arguments, wrapper=wrapper(SUPER_PACKETS)) as second:
        for agent in (first, second):
            agent.wait_ready()
            if not agent.host.pod_addresses():
                agent.host.attach_pods()
        for host, other in ((sender, receiver), (receiver, sender)):
            host.wait_peers({subnet_of(other)})
        yield receiver
        assert (first.stop(), second.stop()) == (0, 0)


@contextmanager
def stream(lab: Lab) -> Iterator[Transfer]:
    """Run a TCP stream from pod to pod."""
    sender, receiver = lab.hosts
    with Transfer(sender.pods[0], receiver.pods[0], TRANSFER_BYTES, endless=True) as transfer:
        yield transfer


def has_begun(transfer: Transfer) -> bool:
    return transfer.received_bytes >= TRANSFER_BYTES


def gbits(transfer: Transfer) -> float:
    """Return what the stream carries from now on, Gbit/s."""
    wait_for("the stream runs", lambda: has_begun(transfer))
    start_bytes, started_s = transfer.received_bytes, time.monotonic()
    wait_for("time is up", lambda: time.monotonic() - started_s >= MEASURED_S)
    return (transfer.received_bytes - start_bytes) * 8 / (time.monotonic() - started_s) / 1e9


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(Plan(fresh_name(), hosts=2, agents=())) as lab:
        yield lab


def test_tcp_goes_on_where_the_kernel_refuses_joined_writes(lab: Lab, record: Recorder) -> None:
    plain, refused = [], []
    action = f"`writev` of a super-packet: EINVAL; {ROUNDS} times, beside agents that join nothing"
    with record.fault(GROUP, "joined writes refused", action, limit_s=BEGIN_S) as fault:
        for _ in range(ROUNDS):
            with agents(lab, f"--offload={WITHOUT_JOINS}"), stream(lab) as transfer:
                plain.append(gbits(transfer))
            with agents(lab) as receiver:
                started_s = time.monotonic()
                with stream(lab) as transfer:
                    fault.wait_right(started_s, partial(has_begun, transfer))
                    refused.append(gbits(transfer))
                status = receiver.control("/v1/status")
            assert "join-tcp" not in status["offload"]
            assert status["counters"]["in"]["drops"] == {}
            assert 0 < status["counters"]["system_calls"]["tun_join_errors"] < N_TRIES_MAX
        fault.also.append(f"TCP {median(refused):.1f} Gbit/s, {median(plain):.1f} without joins (medians)")
